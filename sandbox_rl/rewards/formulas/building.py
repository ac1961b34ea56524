"""Nodes of products and functions from their parts."""

from __future__ import annotations

from sandbox_rl.rewards.formulas.nodes import Node
from sandbox_rl.rewards.formulas.tokens import Unread

__all__ = ["apply", "cross", "is_unit_vector", "times"]

_COUNTS = {"over": 2, "root": 2, "binom": 2, "log": 1, "gcd": 0, "lcm": 0, "max": 0, "min": 0}


def times(left: Node, right: Node) -> Node:
    """A product, longer where `left` is one."""
    parts = (*left.args, right) if left.kind == "mul" else (left, right)
    return Node("mul", parts)


def cross(left: Node, right: Node) -> Node:
    """A product of vectors, whose order matters; a number before a vector is an ordinary factor."""
    *factors, last = left.args if left.kind == "mul" else (left,)
    if last.kind == "num":
        return times(left, right)
    product = Node("func", (last, right), "f:cross")
    return (
        times(Node("mul", tuple(factors)) if len(factors) > 1 else factors[0], product)
        if factors
        else product
    )


def apply(name: str, arguments: tuple[Node, ...], base: Node | None) -> Node:
    """The node of a function; `base` is a logarithm's."""
    if name == "log":
        given = arguments if base is None else (*arguments, base)
        if len(given) > 2 or len(arguments) < 1:
            raise Unread("a logarithm of several numbers")
        return Node("func", given, "logbase") if len(given) == 2 else Node("log", given)
    count = _COUNTS.get(name, 1)
    if base is not None or (count and len(arguments) != count) or not arguments:
        raise Unread(f"{name} takes other arguments")
    if name == "over":
        return Node("div", arguments)
    return arguments[0] if name == "same" else Node("func", arguments, name)


def is_unit_vector(letter: Node) -> bool:
    """Whether a letter with a hat is one of i, j, k: bold, plain or with a hat, it is the same vector."""
    return letter.kind in ("const", "sym") and letter.name in ("i", "j", "k")
