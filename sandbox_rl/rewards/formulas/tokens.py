r"""The tokens of a mathematical answer: LaTeX, plain text or what a program prints.

One pass that drops layout (`\left`, `\,`, `\displaystyle`, `$`) and gives every spelling of a sign one
name. It drops nothing else: a character that has no meaning here ends in `Unread`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from sandbox_rl.rewards.formulas.names import LAYOUT, SYNONYMS, UPRIGHT
from sandbox_rl.rewards.text import unbox

MAX_CHARS = 1000
MAX_TOKENS = 500
MAX_DIGITS = 400

OPENING = frozenset({"(", "[", "{", "\\{", "<<"})
CLOSING = frozenset({")", "]", "}", "\\}", ">>"})


class Unread(ValueError):
    """The text is no mathematics that is understood here as a whole."""


@dataclass(frozen=True, slots=True)
class Token:
    """`kind`: "num", "word" (letters), "cmd" (a LaTeX command) or "sign".

    `spaced`: white space stands before it. `upright`: it stood in `\text{…}` or the like.
    """

    kind: str
    text: str
    spaced: bool = False
    upright: bool = False


_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ", "0123456789+-nx")
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad\u202a-\u202e\u2066-\u2069]")
_CHARS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣－", "-"),
        **dict.fromkeys("×∙·⋅∗✕•", "*"),
        **dict.fromkeys("÷⁄∕", "/"),
        **{"≤": "<=", "≥": ">=", "≠": "!=", "≈": r"\approx ", "∞": r"\infty ", "√": r"\sqrt "},
        **{"∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp "},
        **{sign: rf"\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
        **{"…": r"\ldots ", "⋯": r"\ldots ", "º": "°", "˚": "°", "′": "'", "’": "'", "µ": r"\mu "},
        **{"⟨": r"\langle ", "⟩": r"\rangle ", "∧": r"\land ", "∨": r"\lor ", "⊂": r"\subset "},
        **{"→": r"\to ", "⇒": r"\implies ", "≡": r"\equiv ", "∖": r"\setminus ", "Ω": r"\Omega "},
        **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "∶": ":"},
        **{"°": "°", "“": '"', "”": '"', "℃": "°C", "℉": "°F"},
    }
)
_GREEK = {
    chr(code): unicodedata.name(chr(code)).rsplit(" ", 1)[1].lower().replace("lamda", "lambda")
    for code in (*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA))
}
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:(?:\{,\}|\\,|\\!,?|,\\!|\\ |~| |\u00a0|\u202f)\d{3})+(?!\d)(?:\.\d+)?")
_COMMAS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?")
_SCIENTIFIC = re.compile(
    r"(?:\d+\.\d*|\.\d+|1)[eE][-+]?\d{1,4}(?![\d.])|\d+[eE](?:[-+]\d{2,4}|\d{1,4})(?![\d.])"
)
_NUMBER = re.compile(r"\d+\.(?!\.)\d*|\.\d+|\d+")
_WORD = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]{2,})*|[^\W\d_A-Za-z]")
_COMMAND = re.compile(r"\\([A-Za-z]+)|\\(.)", re.S)
_VECTOR = re.compile(r"\s*\\(?:vec|hat|widehat|mathbf|boldsymbol|bm|overrightarrow)(?![A-Za-z])")
_SIGNS = re.compile(r"\*\*|<=|>=|!=|==|\.\.\.|[-+*/^_()\[\]{}|<>=,;:!°%$€£¥&'≈.]")


def bare(text: str) -> str:
    r"""`text` without what wraps it whole: `\boxed{}`, `$`, `\[ \]`, Markdown's bold and code marks."""
    for _ in range(4):
        text = unbox(_INVISIBLE.sub("", text)).strip()
        for mark in ("**", "__", "`", "*"):
            inner = text[len(mark) : -len(mark)]
            if inner and text.startswith(mark) and text.endswith(mark) and mark not in inner:
                text = inner
                break
        else:
            return text
    return text


def tokenize(text: str, *, thousands: bool = True) -> tuple[Token, ...]:
    """The tokens of one answer.

    Args:
        thousands: read "1,234" outside brackets as one number; else as two members of a list.

    Raises:
        Unread: the text is empty, too long, or holds characters without a meaning here.
    """
    if len(text) > MAX_CHARS:
        raise Unread("too long")
    body = re.sub(r"^\s*~", "≈", _plain(bare(text)))  # elsewhere it is a blank of LaTeX
    tokens: list[Token] = []
    _read(body, tokens, thousands=thousands, upright=False)
    while tokens and tokens[-1].text == ".":
        tokens.pop()
    if not tokens or len(tokens) > MAX_TOKENS or any(token.text == "." for token in tokens):
        raise Unread("empty, too long or a text of sentences")
    return tuple(tokens)


def _plain(text: str) -> str:
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ]+", lambda m: "^{" + m.group().translate(_SUPER) + "}", text)
    text = re.sub(r"[₀-₉ₙ]+", lambda m: "_{" + m.group().translate(_SUB) + "}", text)
    text = re.sub(r"[¼-¾⅐-⅞]", _vulgar, text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARS)).translate(_CHARS)
    text = re.sub(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})", "°", text)
    text = re.sub(r"\\not\s*(?:=|\\equiv(?![A-Za-z]))|\\not\s*\{\s*=\s*\}", "!=", text)
    text = re.sub(r"\bInterval\.([LR]?open)\b", r"Interval\1", text)
    text = re.sub(r"\bnp\.(?:float|int)\d\d(?=\()", "Float", text)
    text = re.sub(r"(?<![A-Za-z])([ap])\.\s?m\b\.?", r"\1m", text, flags=re.I)
    return re.sub(r"\\not\s*\\in(?![A-Za-z])", r"\\notin ", text)


def _vulgar(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return f"\\frac{{{above}}}{{{below}}}"


def _read(text: str, tokens: list[Token], *, thousands: bool, upright: bool) -> None:
    at, spaced, brackets = 0, False, list[bool]()
    while at < len(text):
        char = text[at]
        if char.isspace() or char == "~":
            at, spaced = at + 1, True
            continue
        if char == "\\":
            at, spaced = _command(text, at, spaced, tokens, thousands=thousands)
            if tokens and tokens[-1].text in ("\\{", "\\}"):
                _track(tokens, brackets)
            continue
        match, kind = _match(text, at, thousands=thousands and not any(brackets))
        tokens.append(_token(kind, match, spaced=spaced, upright=upright))
        if kind == "sign":
            _track(tokens, brackets)
        at, spaced = at + len(match), False


def _track(tokens: list[Token], brackets: list[bool]) -> None:
    """Keep the open brackets: True where commas separate members, False for the braces of LaTeX."""
    sign = tokens[-1].text
    if sign == "{":
        before = tokens[-2] if len(tokens) > 1 else None
        brackets.append(before is None or not (before.kind == "cmd" or before.text in ("^", "_", "}", "]")))
    elif sign in ("(", "[", "\\{"):
        brackets.append(True)
    elif sign in CLOSING and brackets:
        brackets.pop()


def _match(text: str, at: int, *, thousands: bool) -> tuple[str, str]:
    if (text[at].isdigit() and text[at].isascii()) or (text[at] == "." and text[at + 1 : at + 2].isdigit()):
        for pattern in (_GROUPED, *((_COMMAS,) if thousands else ()), _SCIENTIFIC, _NUMBER):
            if match := pattern.match(text, at):
                if len(match.group()) > MAX_DIGITS:
                    raise Unread("a number of too many digits")
                return match.group(), "num"
    if match := _WORD.match(text, at):
        return match.group(), "word"
    if match := _SIGNS.match(text, at):
        return match.group(), "sign"
    raise Unread(f"the character {text[at]!r}")


def _token(kind: str, text: str, *, spaced: bool, upright: bool) -> Token:
    if kind == "num" and not _SCIENTIFIC.fullmatch(text):
        text = re.sub(r"[^\d.]", "", text)
    elif kind == "word" and text in _GREEK:
        return Token("cmd", f"\\{_GREEK[text]}", spaced)
    elif kind == "sign":
        text = {"**": "^", "==": "="}.get(text, text)
    return Token(kind, text, spaced, upright)


def _command(text: str, at: int, spaced: bool, tokens: list[Token], *, thousands: bool) -> tuple[int, bool]:
    match = _COMMAND.match(text, at)
    if match is None:
        raise Unread("a backslash at the end")
    name, symbol, end = match.group(1), match.group(2), match.end()
    if symbol is not None:
        if symbol in ",;:!> ":
            return end, True
        kind = "cmd" if symbol == "\\" else "sign"
        tokens.append(Token(kind, f"\\{symbol}" if symbol in "{}|\\" else symbol, spaced))
        if symbol not in "{}|\\%$&_":
            raise Unread(f"the command \\{symbol}")
        return end, False
    if name == "times" and _VECTOR.match(text, end):
        tokens.append(Token("sign", "×", spaced))
        return end, False
    if name in LAYOUT:
        following = re.compile(r"\s*\.").match(text, end) if name in ("left", "right") else None
        return (following.end() if following else end), spaced
    if (
        name in ("mathbb", "mathbf", "mathds")
        and (match := re.compile(r"\s*\{?([RZNQC])\}?").match(text, end))
        and (name == "mathbb" or "{" in match.group())
    ):
        tokens.append(Token("cmd", f"\\mathbb{match.group(1)}", spaced))
        return match.end(), False
    if name in UPRIGHT and (match := re.compile(r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}").match(text, end)):
        first = len(tokens)
        _read(match.group(1), tokens, thousands=thousands, upright=True)
        if len(tokens) > first and spaced and not tokens[first].spaced:
            token = tokens[first]
            tokens[first] = Token(token.kind, token.text, True, token.upright)
        return match.end(), match.group(1).endswith(" ")
    canonical = SYNONYMS.get(name, f"\\{name}")
    kind = "cmd" if canonical.startswith("\\") and canonical not in ("\\{", "\\}") else "sign"
    tokens.append(Token("word" if canonical in ("and", "or") else kind, canonical, spaced))
    return end, False
