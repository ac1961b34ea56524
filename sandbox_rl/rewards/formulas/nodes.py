"""The tree that an answer is read into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Node:
    """One part of an answer.

    Values: "num" (`number`; `name` "sci", "mixed" or ""), "sym", "const" (pi, e, i, inf), "func" (`name`),
    "add", "mul", "div", "pow", "neg", "pm" (`name` + or -: which sign is taken first), "log" (of the base
    that its text leaves open), "based" (digits in `name`, base in `number`).
    Shapes: "list" (`name`: "" or "or"), "tuple" (`name`: its brackets), "set" (`name` "{" where its braces
    may be LaTeX's), "matrix" (rows), "rel" (`name`: the signs, one between each two members), "union",
    "inter", "minus", "builder", "mod", "numbers" (R, Z …), "ratio", "time", "dots", "text", "quantity"
    (`args`: the value and, where the letters of the unit may be factors, the product; `name`: the unit).
    """

    kind: str
    args: tuple[Node, ...] = ()
    name: str = ""
    number: Fraction | None = None


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    for arg in node.args:
        yield from walk(arg)


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables in it."""
    return frozenset(part.name for part in walk(node) if part.kind == "sym")


def is_name(node: Node) -> bool:
    """A variable, or a function of variables: what a value can be given to."""
    if node.kind == "func" and node.name.startswith("f:"):
        return all(arg.kind == "sym" for arg in node.args)
    return node.kind == "sym"


def infinite(node: Node) -> int:
    """-1 or 1 for an infinity by its sign, 0 for anything else."""
    if node.kind == "neg":
        return -infinite(node.args[0])
    return int(node.kind == "const" and node.name == "inf")


def is_plain(node: Node) -> bool:
    """A number as it is written down: decimal, scientific, mixed, signed; or a fraction of two integers."""
    if node.kind == "neg":
        return is_plain(node.args[0])
    if node.kind == "div":
        return all(_integer(arg) for arg in node.args)
    return node.kind == "num"


def times(left: Node, right: Node) -> Node:
    """A product, longer where `left` is one."""
    return Node("mul", (*left.args, right) if left.kind == "mul" else (left, right))


def cross(left: Node, right: Node) -> Node:
    """A product of vectors, whose order matters; a number before a vector is an ordinary factor."""
    *factors, last = left.args if left.kind == "mul" else (left,)
    if last.kind == "num":
        return times(left, right)
    product = Node("func", (last, right), "f:cross")
    if not factors:
        return product
    return times(Node("mul", tuple(factors)) if len(factors) > 1 else factors[0], product)


def _integer(node: Node) -> bool:
    if node.kind == "neg":
        return _integer(node.args[0])
    return node.kind == "num" and not node.name and node.number is not None and node.number.denominator == 1
