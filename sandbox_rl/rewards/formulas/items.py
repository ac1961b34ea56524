"""Members of an answer that hold no other answers: words, times, matrices, values with their units."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sandbox_rl.rewards.formulas.cursor import closing_of, end_of, parted
from sandbox_rl.rewards.formulas.grammar import ANGLES, Expression
from sandbox_rl.rewards.formulas.names import FUNCTIONS, SCALES
from sandbox_rl.rewards.formulas.nodes import Node, is_plain
from sandbox_rl.rewards.formulas.tokens import Token, Unread
from sandbox_rl.rewards.text import fold
from sandbox_rl.rewards.units import NO_UNIT, parse_unit

_NUMBERS = {f"\\mathbb{letter}": letter for letter in "RZNQC"}
_EMPTY = frozenset({"no solution", "no solutions", "none", "empty set", "the empty set", "emptyset", "set()"})
_REALS = frozenset({"all real numbers", "all reals", "the real numbers", "all real x", "reals"})
_NOT_UNITS = frozenset({"and", "or"})


def text(tokens: Sequence[Token], depth: int) -> Node | None:
    """Words; the names of sets that are words or one sign."""
    written = " ".join(token.text for token in tokens)
    words = fold(written)
    if words in _EMPTY or [token.text for token in tokens] == ["\\emptyset"]:
        return Node("set")
    if words in _REALS:
        return Node("numbers", name="R")
    if len(tokens) == 1 and tokens[0].text in _NUMBERS:
        return Node("numbers", name=_NUMBERS[tokens[0].text])
    if not all(token.kind == "word" or token.text in ("'", ".", "-", "/", "&") for token in tokens):
        return None
    if len(tokens) == 1 and (len(words) < 2 or tokens[0].text in FUNCTIONS):
        return None
    if len(tokens) > 1 and any(token.kind == "sign" for token in tokens) and not _wordy(tokens):
        return None
    if len(tokens) > 1 and not any(len(token.text) > 2 for token in tokens if token.kind == "word"):
        return None
    try:  # "ab" is a product as well, "sin x" and "pi r" are nothing else
        product = Expression(tokens, depth).whole()
    except Unread:
        return Node("text", name=words)
    if (
        len(tokens) > 1
        or tokens[0].text in ("pi", "oo", "inf", "infinity")
        or product.kind in ("func", "log")
    ):
        return None
    return Node("text", (product,), written) if product.kind == "mul" else None


def _wordy(tokens: Sequence[Token]) -> bool:
    return all(len(token.text) > 2 for token in tokens if token.kind == "word")


def clock(tokens: Sequence[Token], depth: int) -> Node | None:
    """`12:30`, `3:00 pm`, `3 pm`, `2:3:4`."""
    half = ""
    words = "".join(token.text for token in tokens).casefold().replace(".", "")
    if words.endswith(("am", "pm")) and tokens[0].kind == "num":
        half, words = words[-2:], words[:-2]
        if re.fullmatch(r"\d{1,2}(?::\d\d)?", words):
            hour, _, minute = words.partition(":")
            return Node("time", name=f"{int(hour)}:{minute or '00'}{half}")
        return None
    parts, colons = parted(tokens, lambda token: token.kind == "sign" and token.text == ":")
    if not colons:
        return None
    return Node("ratio", tuple(Expression(part, depth).whole() for part in parts))


def dots(tokens: Sequence[Token], depth: int) -> Node | None:
    """The gap of a sequence."""
    return Node("dots") if [token.text for token in tokens] == ["..."] else None


def environment(tokens: Sequence[Token], depth: int) -> Node | None:
    """A matrix, with the brackets around it or without."""
    if tokens[0].text in ("(", "[") and len(tokens) > 2 and tokens[1].text == "\\begin":
        if closing_of(tokens, 0) != len(tokens) - 1:
            return None
        tokens = tokens[1:-1]
    if tokens[0].text != "\\begin" or end_of(tokens, 0) != len(tokens) - 1:
        return None
    texts = [token.text for token in tokens]
    if texts[1] != "{" or texts[3:4] != ["}"] or texts[-4:] != ["\\end", "{", texts[2], "}"]:
        raise Unread("an environment")
    start = 4
    if texts[2] == "array" and texts[4] == "{":
        start = closing_of(tokens, 4) + 1
    elif texts[2] not in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "Bmatrix"):
        raise Unread(f"the environment {texts[2]}")
    rows, row, cell = list[Node](), list[Node](), start
    for place in range(start, len(tokens) - 3):
        if texts[place] in ("&", "\\\\", "\\end"):
            if place > cell or texts[place] != "\\end" or row:
                row.append(Expression(tokens[cell:place], depth).whole())
            cell = place + 1
            if texts[place] != "&" and row:
                rows.append(Node("list", tuple(row)))
                row = []
    if not rows or len({len(each.args) for each in rows}) != 1:
        raise Unread("rows of different lengths")
    return Node("matrix", tuple(rows))


def modulus(tokens: Sequence[Token], depth: int) -> Node | None:
    """`3 \\pmod{7}`, `3 (mod 7)`, `3 mod 7`."""
    texts = [token.text for token in tokens]
    for place in range(1, len(tokens) - 1):
        if texts[place] in ("\\pmod", "\\bmod", "\\mod", "mod"):
            end = place
            inner = tokens[place + 1 :]
            if texts[place - 1] == "(" and texts[-1] == ")":
                end, inner = place - 1, inner[:-1]
            if inner and inner[0].text == "{" and inner[-1].text == "}":
                inner = inner[1:-1]
            left, right = Expression(tokens[:end], depth).whole(), Expression(inner, depth).whole()
            return Node("mod", (left, right), texts[place])
    return None


def quantity(tokens: Sequence[Token], depth: int) -> Node:
    r"""A value, with the unit or the words behind it or the currency before it.

    The longest run of tokens at the end that spells a unit is one. Where its letters could be factors
    ("5 m", "2mg") both readings are kept.
    """
    if tokens[0].text in ("$", "€", "£", "¥") and len(tokens) > 1:
        value = Expression(tokens[1:], depth).whole()
        return Node("quantity", (value,), tokens[0].text)
    if tokens[0].text == "-" and len(tokens) > 2 and tokens[1].text in ("$", "€", "£"):
        value = Expression(tokens[2:], depth).whole()
        return Node("quantity", (Node("neg", (value,)),), tokens[1].text)
    if tokens[-1].text == "°" and any(token.text.lstrip("\\") in ANGLES for token in tokens):
        return Expression(tokens, depth).whole()  # tan 30°
    for place in range(max(1, len(tokens) - 24), len(tokens)):
        if not _may_begin_unit(tokens, place):
            continue
        spelled = _spelled(tokens[place:])
        unit = parse_unit(spelled)
        if unit in (None, NO_UNIT) and not _is_item(tokens[place:]):
            continue
        try:
            value = Expression(tokens[:place], depth).whole()
        except Unread:
            continue
        if unit is None and not is_plain(value):
            continue
        return Node("quantity", (value, *_factors(tokens, place, value, depth)), spelled)
    return Expression(tokens, depth).whole()


def _may_begin_unit(tokens: Sequence[Token], place: int) -> bool:
    token, before = tokens[place], tokens[place - 1]
    if before.text in ("+", "-", "*", "/", "^", "_", "(", "[", "{", "\\frac", "\\sqrt", "\\pm", "|", "="):
        return before.text == "-" and token.kind == "word" and place > 1 and tokens[place - 2].kind == "num"
    if token.kind == "word":
        return token.text not in _NOT_UNITS and token.text not in SCALES
    return token.text in ("%", "°", "$", "€", "£", "\\mu", "\\Omega")


def _spelled(tokens: Sequence[Token]) -> str:
    pieces: list[str] = []
    for token in tokens:
        text = {"\\mu": "µ", "\\Omega": "Ω"}.get(token.text, token.text)
        joined = pieces and pieces[-1].endswith(("°", "µ", "^", "{", "^{-", "^-", "k")) and not token.spaced
        joined = joined or (bool(pieces) and pieces[-1].strip() == "µ")
        if text == "Ω" and not token.spaced:  # MΩ and mΩ are prefixes, not molar or metre times ohm
            joined = joined or (bool(pieces) and pieces[-1].strip() in set("pnmMGT"))
        pieces.append(text if joined or text in ("^", "{", "}") or text.isdigit() else f" {text}")
    return "".join(pieces).replace("{ - ", "{-").replace("{ -", "{-").replace("^ -", "^-").strip()


def _is_item(tokens: Sequence[Token]) -> bool:
    """Words that may be what was counted, such as "red apples"."""
    return all(token.kind == "word" for token in tokens) and (len(tokens[0].text) > 2 or tokens[0].upright)


def _factors(tokens: Sequence[Token], place: int, value: Node, depth: int) -> tuple[Node, ...]:
    """The other reading of "5 m": a product, or nothing where the unit can be nothing else.

    A letter alone is a unit behind a number and a blank; two or more letters are behind a blank.
    """
    token = tokens[place]
    if token.upright or token.kind != "word":
        return ()
    if token.spaced and (len(token.text) > 1 or is_plain(value)):
        if len(token.text) > 2 or len(tokens) - place > 1:
            return ()
        try:
            return (Expression(tokens, depth).whole(), Node("text", name="spaced"))
        except Unread:
            return ()
    try:
        return (Expression(tokens, depth).whole(),)
    except Unread:
        return ()
