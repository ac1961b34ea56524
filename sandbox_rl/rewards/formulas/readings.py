"""Other ways to read a tree: both signs, other names of constants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from sandbox_rl.rewards.formulas.nodes import Node, symbols, walk

VALUES = frozenset({"num", "sym", "const", "func", "add", "mul", "div", "pow", "neg", "log", "pm"})


def readings(said: Node, gold: Node) -> list[Node]:
    """`said`, and with sympy's names of constants and C for c where only the gold has these."""
    names, constants = symbols(said), {part.name for part in walk(gold) if part.kind == "const"}
    found = [said]
    wanted = symbols(gold)
    for name, constant in (("I", "i"), ("E", "e"), ("j", "i")):
        if name in names - wanted and constant in constants:
            found.append(_renamed(said, name, Node("const", name=constant)))
    if "C" in wanted - names and gold.kind == said.kind == "add":
        for name in ("c", "K", "k"):
            if Node("sym", name=name) in said.args and name not in wanted:
                found.append(_renamed(said, name, Node("sym", name="C")))
    return found


def _renamed(node: Node, name: str, new: Node) -> Node:
    if node.kind == "sym" and node.name == name:
        return new
    return Node(node.kind, tuple(_renamed(arg, name, new) for arg in node.args), node.name, node.number)


def both_signs(node: Node) -> Node | None:
    r"""A value with \pm as the list of its two values; None where there is no such sign."""
    if node.kind in ("list", "set"):
        if not any(arg.kind in VALUES | {"rel"} and _signs(arg) for arg in node.args):
            return None
        members: list[Node] = []
        for arg in node.args:
            several = both_signs(arg)
            members += (arg,) if several is None else several.args
        return Node(node.kind, tuple(members), node.name)
    signs = _signs(node) if node.kind in VALUES or node.name == "=" else []
    if not signs or len(signs) > 3:
        return None
    linked = any(sign.name == "p" for sign in signs) and any(sign.name == "m" for sign in signs)
    choices = [(0,) * len(signs), (1,) * len(signs)] if linked else list(product((0, 1), repeat=len(signs)))
    return Node("list", tuple(_chosen(node, iter(choice)) for choice in choices))


def _signs(node: Node) -> list[Node]:
    return [part for part in walk(node) if part.kind == "pm"]


def _chosen(node: Node, choice: Iterator[int]) -> Node:
    if node.kind == "pm":
        second = next(choice)
        inner = _chosen(node.args[0], choice)
        return Node("neg", (inner,)) if bool(second) == (node.name == "p") else inner
    return Node(node.kind, tuple(_chosen(arg, choice) for arg in node.args), node.name, node.number)
