r"""Reading a text as one mathematical answer: a value, or a list, set, interval, matrix, equation, text.

`read` gives the tree, or raises `Unread`: what is not understood as a whole is not read in part. It is linear
in the text but for the search of a unit at the end of a value, which is tried at a bounded number of places.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from sandbox_rl.rewards.formulas.cursor import closing_of, parted
from sandbox_rl.rewards.formulas.items import clock, dots, environment, modulus, quantity, text
from sandbox_rl.rewards.formulas.nodes import Node
from sandbox_rl.rewards.formulas.tokens import CLOSING, OPENING, Token, Unread, tokenize

MAX_DEPTH = 12
MAX_MEMBERS = 64

_RELATIONS = frozenset(
    {"=", "<", ">", "<=", ">=", "!=", "≈", "\\in", "\\notin", "\\equiv", "\\subset", "\\subseteq"}
)
_SETS = {"\\cup": "union", "\\cap": "inter", "\\setminus": "minus"}
_CALLED = "Matrix array FiniteSet Interval Union Eq Tuple set list tuple ImmutableMatrix"
_PROGRAM = frozenset(_CALLED.split())
_INTERVALS = {"Intervalopen": "()", "IntervalLopen": "(]", "IntervalRopen": "[)", "Interval": "[]"}


def read(text: str, *, thousands: bool = True) -> Node:
    """The one answer that `text` states.

    Raises:
        Unread: it is not understood as a whole.
    """
    return read_tokens(tokenize(text, thousands=thousands))


def read_tokens(tokens: Sequence[Token], depth: int = 0) -> Node:
    """The answer of a run of tokens: members separated by commas, semicolons, "and" or "or"."""
    if depth > MAX_DEPTH:
        raise Unread("nested too deeply")
    parts, joint = _split(tokens)
    if len(parts) == 1:
        return _statement(parts[0], depth)
    if len(parts) > MAX_MEMBERS:
        raise Unread("too many members")
    nodes = tuple(_statement(part, depth) for part in parts)
    if nodes[-1].kind == "mod" and len(nodes) == 2:  # x = 3, (mod 7)
        raise Unread("a modulus behind a comma")
    return Node("list", nodes, joint)


def _split(tokens: Sequence[Token]) -> tuple[list[Sequence[Token]], str]:
    """The members outside of brackets, and "or" where that word stands between two of them."""
    parts, joints = parted(tokens, _joins)
    # "1, 2, and 3" has two separators in one place; a comma at either end is a member that is missing
    kept = [part for at, part in enumerate(parts) if part or not 0 < at < len(parts) - 1]
    if not all(kept) or len(parts) - len(kept) > 1:
        raise Unread("a member is missing")
    return kept, "or" if any(joint.text.casefold() == "or" for joint in joints) else ""


def _joins(token: Token) -> bool:
    return token.text in (",", ";") or (token.kind == "word" and token.text.casefold() in ("and", "or"))


def _statement(tokens: Sequence[Token], depth: int) -> Node:
    """An equation, an inequality, a membership, or what stands in them."""
    parts, signs = parted(tokens, lambda token: token.kind != "num" and token.text in _RELATIONS)
    if not signs:
        return _item(tokens, depth)
    if not all(parts) or len(signs) > 4:
        raise Unread("a side of a relation is missing")
    nodes = [_item(part, depth) for part in parts]
    return Node("rel", tuple(nodes), " ".join(sign.text for sign in signs))


def _item(tokens: Sequence[Token], depth: int) -> Node:
    if not tokens:
        raise Unread("nothing stands there")
    for shape in (text, clock, dots, _set_terms, _enclosed, environment, _program, modulus):
        node = shape(tokens, depth)
        if node is not None:
            return node
    return quantity(tokens, depth)


def _set_terms(tokens: Sequence[Token], depth: int) -> Node | None:
    """Unions, intersections and differences of sets, from left to right."""
    parts, signs = parted(
        tokens,
        lambda token: (
            token.text in _SETS or (token.kind == "word" and token.text == "U" and token is not tokens[0])
        ),
    )
    if not signs:
        return None
    node, *others = (_item(part, depth + 1) for part in parts)
    for sign, other in zip(signs, others, strict=True):
        node = Node(_SETS.get(sign.text, "union"), (node, other))
    return node


def _enclosed(tokens: Sequence[Token], depth: int) -> Node | None:
    """One pair of brackets around everything: tuple, interval, list, set, set with a condition."""
    first = tokens[0].text
    if tokens[0].kind != "sign" or first not in OPENING or closing_of(tokens, 0) != len(tokens) - 1:
        return None
    pair, inner = first.strip("\\") + tokens[-1].text.strip("\\"), tokens[1:-1]
    if not inner:
        if pair == "{}":
            return Node("set")
        raise Unread("empty brackets")
    if pair == "{}":
        return _braces(inner, depth, escaped=first == "\\{")
    node = read_tokens(inner, depth + 1)
    if node.kind == "list" and not node.name:
        if pair == "[]" and _is_rows(node):
            return Node("matrix", tuple(Node("list", row.args) for row in node.args), "program")
        return Node("tuple", node.args, pair)
    if pair == "()":
        return node
    if pair == "[]":
        return Node("tuple", (node,), pair)
    raise Unread("one member in the brackets of an interval")


def _is_rows(node: Node) -> bool:
    """Lists of lists of one length, as programs print a matrix."""
    rows = node.args
    return all(
        row.kind == "tuple" and row.name == "[]" and len(row.args) == len(rows[0].args) for row in rows
    )


def _braces(inner: Sequence[Token], depth: int, *, escaped: bool) -> Node:
    level = 0
    for place, token in enumerate(inner):
        sign = token.text if token.kind == "sign" else ""
        level += (sign in OPENING) - (sign in CLOSING)
        if level == 0 and sign in ("|", ":") and place > 0 and not _is_bar(inner, place):
            head = _statement(inner[:place], depth + 1)
            return Node("builder", (head, read_tokens(inner[place + 1 :], depth + 1)))
    node = read_tokens(inner, depth + 1)
    members = node.args if node.kind == "list" and not node.name else (node,)
    return Node("set", members, "" if escaped or len(members) > 1 else "{")


def _is_bar(tokens: Sequence[Token], place: int) -> bool:
    """Whether the bar at `place` opens or closes an absolute value: the head of a condition has none."""
    return tokens[place].text == "|" and not any(
        token.text in ("=", "<", ">", "<=", ">=", "!=", "\\in") for token in tokens[place:]
    )


def _program(tokens: Sequence[Token], depth: int) -> Node | None:
    """What sympy and Python print: `Matrix([[1]])`, `Interval.open(0, 1)`, `FiniteSet(1, 2)`, `Eq(x, 2)`."""
    name = tokens[0].text
    if tokens[0].kind != "word" or name not in _PROGRAM | _INTERVALS.keys() or len(tokens) < 4:
        return None
    if tokens[1].text != "(" or closing_of(tokens, 1) != len(tokens) - 1:
        return None
    inner = read_tokens(tokens[2:-1], depth + 1)
    args = inner.args if inner.kind == "list" else (inner,)
    if name in ("Matrix", "ImmutableMatrix", "array"):
        if inner.kind == "tuple" and name != "array":  # Matrix([1, 2]) is a column
            return Node("matrix", tuple(Node("list", (arg,)) for arg in inner.args))
        return Node("matrix", inner.args) if inner.kind == "matrix" else inner
    if name in _INTERVALS and len(args) == 2:
        return Node("tuple", args, _interval_brackets(args, _INTERVALS[name]))
    if name == "Union" and len(args) > 1:
        return reduce(lambda left, right: Node("union", (left, right)), args)
    if name == "Eq" and len(args) == 2:
        return Node("rel", args, "=")
    if name in ("FiniteSet", "Tuple"):
        return Node("set", args) if name == "FiniteSet" else Node("tuple", args, "()")
    return inner if inner.kind in ("set", "tuple") else None


def _interval_brackets(args: tuple[Node, ...], pair: str) -> str:
    infinite = [any(part.name == "inf" for part in (arg, *arg.args)) for arg in args]
    return ("(" if infinite[0] else pair[0]) + (")" if infinite[1] else pair[1])
