"""Walking along tokens: brackets, what stands outside of them, digits, numerals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from sandbox_rl.rewards.formulas.names import SCALES
from sandbox_rl.rewards.formulas.nodes import Node
from sandbox_rl.rewards.formulas.tokens import CLOSING, OPENING, Token, Unread

MAX_DEPTH = 40
_END = Token("end", "")


def number(text: str) -> Fraction:
    """The exact value of a numeral."""
    if match := re.fullmatch(r"([\d.]+)[eE]([-+]?\d+)", text):
        if abs(int(match[2])) > 1000:
            raise Unread("an exponent of too many digits")
        return Fraction(match[1].strip(".")) * Fraction(10) ** int(match[2])
    return Fraction(text.rstrip("."))


def closing_of(tokens: Sequence[Token], at: int) -> int:
    """The place of the bracket that closes the one at `at`; intervals may mix round and square ones."""
    stack: list[str] = []
    for place in range(at, len(tokens)):
        sign = tokens[place].text if tokens[place].kind == "sign" else ""
        if sign in OPENING:
            stack.append(sign)
        elif sign in CLOSING:
            pair = stack.pop() + sign if stack else ""
            if pair not in ("()", "(]", "[)", "[]", "{}", "\\{\\}", "<<>>"):
                break
            if not stack:
                return place
    raise Unread("a bracket without its partner")


def end_of(tokens: Sequence[Token], at: int) -> int:
    r"""The last token of the environment whose `\begin` stands at `at`."""
    depth = 0
    for place in range(at, len(tokens)):
        if tokens[place].text in ("\\begin", "\\end"):
            depth += 1 if tokens[place].text == "\\begin" else -1
            if depth == 0:
                return min(place + 3, len(tokens) - 1)
    raise Unread("an environment without its end")


def parted(
    tokens: Sequence[Token], separates: Callable[[Token], bool]
) -> tuple[list[Sequence[Token]], list[Token]]:
    """The runs of tokens between separators that stand outside of brackets and environments, and those."""
    parts, separators, start, place = list[Sequence[Token]](), list[Token](), 0, 0
    while place < len(tokens):
        token = tokens[place]
        if token.kind == "sign" and token.text in OPENING:
            place = closing_of(tokens, place)
        elif token.text == "\\begin":
            place = end_of(tokens, place)
        elif separates(token):
            parts.append(tokens[start:place])
            separators.append(token)
            start = place + 1
        place += 1
    return [*parts, tokens[start:]], separators


class Cursor:
    """A place in a run of tokens, and what is read without knowing expressions."""

    def __init__(self, tokens: Sequence[Token], depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise Unread("nested too deeply")
        self._tokens = tokens
        self._at = 0
        self._depth = depth
        self._bars = 0

    def _peek(self, ahead: int = 0) -> Token:
        """The token that comes, `_END` behind the last one."""
        place = self._at + ahead
        return self._tokens[place] if place < len(self._tokens) else _END

    def _is(self, *texts: str) -> bool:
        token = self._peek()
        return token.text in texts and token.kind != "num"

    def _next(self) -> Token:
        token = self._peek()
        if token is _END:
            raise Unread("something is missing at the end")
        self._at += 1
        return token

    def _passes(self, *texts: str) -> bool:
        """Whether the next token is one of these, which is then passed."""
        found = self._is(*texts)
        self._at += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._passes(sign):
            raise Unread(f"{sign!r} is missing")

    def _enclosed(self) -> Sequence[Token]:
        """What the bracket that comes next encloses; it is passed with its partner."""
        start, close = self._at + 1, closing_of(self._tokens, self._at)
        self._at = close + 1
        return self._tokens[start:close]

    def _digits(self) -> str:
        braces = self._passes("{")
        token = self._next()
        if token.kind != "num" or not re.fullmatch(r"\d{1,60}", token.text):
            raise Unread("digits were expected")
        if braces:
            self._expect("}")
        return token.text

    def _mixed(self) -> Fraction | None:
        r"""The proper fraction behind an integer, `2\frac{1}{2}` or `2 1/2`."""
        following = self._tokens[self._at : self._at + 7]
        texts = [token.text for token in following]
        size, above, below = 0, "", ""
        if texts[:2] == ["\\frac", "{"] and len(texts) == 7 and texts[3:5] == ["}", "{"] and texts[6] == "}":
            size, above, below = 7, texts[2], texts[5]
        elif texts[:1] == ["\\frac"] and len(texts) > 1 and re.fullmatch(r"\d\d", texts[1]):
            size, above, below = 2, texts[1][0], texts[1][1]
        elif len(texts) > 2 and texts[1] == "/" and following[0].spaced and following[0].kind == "num":
            size, above, below = 3, texts[0], texts[2]
        if not size or not re.fullmatch(r"\d{1,9}", above) or not re.fullmatch(r"\d{1,9}", below):
            return None
        if not 0 < int(above) < int(below):
            return None
        self._at += size
        return Fraction(int(above), int(below))

    def _numeral(self, token: Token) -> Node:
        value, scientific = number(token.text), bool(re.search("[eE]", token.text))
        if "." in token.text and self._passes("\\overline", "\\dot"):
            digits = self._digits()
            places = len(token.text.partition(".")[2])
            value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)
            return Node("num", number=value, name="repeating")
        if self._passes("_"):
            return Node("based", name=token.text, number=Fraction(int(self._digits())))
        integer = re.fullmatch(r"\d+", token.text) is not None
        if integer and (fraction := self._mixed()) is not None:
            return Node("num", number=value + fraction, name="mixed")
        if self._is(*SCALES):  # 3 million
            return Node("num", number=value * SCALES[self._next().text], name="sci")
        return Node("num", number=value, name="sci" if scientific else "")

    def _subscript(self) -> str:
        if self._is("{"):
            return "".join(token.text for token in self._enclosed())
        return self._next().text

    @staticmethod
    def _constant(letter: str) -> Node:
        return Node("const", name=letter) if letter in ("e", "i") else Node("sym", name=letter)
