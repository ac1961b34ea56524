"""Sets of real numbers: intervals, inequalities, unions, conditions, as one thing.

Two sets are equal when they hold the same of the points and gaps that the ends of both make on the line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cmp_to_key

from sandbox_rl.rewards.formulas.exact import TooLarge, Undefined
from sandbox_rl.rewards.formulas.nodes import Node, infinite, is_name, symbols
from sandbox_rl.rewards.formulas.values import order

MAX_ENDS = 40
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_INFINITY = Node("const", name="inf")
_ENDS = (Node("neg", (_INFINITY,)), _INFINITY)


class NotASet(ValueError):
    """The node is no set of real numbers with constant ends."""


def is_set_like(node: Node) -> bool:
    """Whether it is written as a set of numbers other than a list of them."""
    if node.kind == "rel":
        return set(node.name.split()) != {"="} and "≈" not in node.name and "\\equiv" not in node.name
    if node.kind == "tuple":
        return node.name in ("[)", "(]") or any(map(infinite, node.args))
    if node.kind == "list":
        return any(arg.kind == "rel" for arg in node.args) and all(map(is_set_like, node.args))
    return node.kind in ("union", "inter", "minus", "builder", "numbers")


def flattened(node: Node) -> Node:
    """A union of finite sets as one set."""
    if node.kind != "union":
        return node
    left, right = map(flattened, node.args)
    if left.kind == right.kind == "set":
        kept = list(left.args)
        kept += [member for member in right.args if member not in left.args]
        return Node("set", tuple(kept))
    return Node("union", (left, right))


def same_set(said: Node, gold: Node) -> bool:
    """Whether both are one set of real numbers.

    Raises:
        NotASet: one of them is none that is understood here.
        TooLarge: its ends cannot be compared in bounded time.
    """
    names: set[str] = set()
    ends: list[Node] = list(_ENDS)
    shapes = [_shape(node, ends, names) for node in (said, gold)]
    if len(names) > 1:
        return False  # x < 5 is not y < 5
    if len(ends) > MAX_ENDS:
        raise TooLarge
    try:
        ends.sort(key=cmp_to_key(order))
        distinct = [ends[0]]
        for end in ends[1:]:
            if order(distinct[-1], end) != 0:
                distinct.append(end)
        place = {end: next(at for at, other in enumerate(distinct) if order(other, end) == 0) for end in ends}
    except Undefined:
        raise NotASet from None
    slots = 2 * len(distinct) - 1  # the ends at even places, the gaps between them at odd ones
    masks = [shape(place, slots) for shape in shapes]
    return masks[0] == masks[1]


Shape = Callable[[dict[Node, int], int], int]


def _shape(node: Node, ends: list[Node], names: set[str]) -> Shape:
    """What gives the mask of a node's slots, once its ends have places."""
    match node.kind:
        case "numbers" if node.name == "R":
            return _between(*_ENDS, "()")
        case "tuple" if len(node.args) == 2 and set(node.name) <= set("()[]"):
            low, high = node.args
            ends += node.args
            return _between(low, high, node.name)
        case "set":
            ends += node.args
            return _points(node.args)
        case "union" | "inter" | "minus":
            left, right = (_shape(arg, ends, names) for arg in node.args)
            return _joined(node.kind, left, right)
        case "rel":
            return _relation(node, ends, names)
        case "builder":
            return _condition(node, ends)
        case "list":
            return _several(node, ends, names)
        case "quantity" if len(node.args) == 1 and not node.name:
            return _shape(node.args[0], ends, names)
    raise NotASet


def _condition(node: Node, ends: list[Node]) -> Shape:
    head, condition = node.args
    if head.kind == "rel" and head.name == "\\in" and head.args[1] == Node("numbers", name="R"):
        head = head.args[0]
    if head.kind != "sym" or symbols(condition) != {head.name}:
        raise NotASet
    inner: set[str] = set()
    return _shape(condition, ends, inner)  # the bound variable's name does not matter


def _several(node: Node, ends: list[Node], names: set[str]) -> Shape:
    if not all(arg.kind == "rel" for arg in node.args):
        raise NotASet
    shapes = [_shape(arg, ends, names) for arg in node.args]

    def mask(place: dict[Node, int], slots: int) -> int:
        masks = [shape(place, slots) for shape in shapes]
        both, either = masks[0], masks[0]
        for each in masks[1:]:
            both, either = both & each, either | each
        # "x < 1, x > 2" lists the parts of a solution: nothing satisfies both
        return either if node.name == "or" or not both else both

    return mask


def _relation(node: Node, ends: list[Node], names: set[str]) -> Shape:
    signs = node.name.split()
    if len(signs) == 1 and signs[0] in ("\\in", "\\notin") and is_name(node.args[0]):
        names.add(node.args[0].name)
        inner = _shape(node.args[1], ends, names)
        return inner if signs[0] == "\\in" else _joined("minus", _between(*_ENDS, "()"), inner)
    if len(signs) == 1 and signs[0] == "=" and is_name(node.args[0]) and not symbols(node.args[1]):
        names.add(node.args[0].name)
        ends.append(node.args[1])
        return _points(node.args[1:])
    shapes = []
    for (left, right), sign in zip(zip(node.args, node.args[1:], strict=False), signs, strict=True):
        if is_name(right) and not symbols(left):
            left, right, sign = right, left, FLIPPED.get(sign, "")
        if not is_name(left) or symbols(right) or sign not in FLIPPED:
            raise NotASet
        names.add(left.name)
        ends.append(right)
        shapes.append(_half(sign, right))
    shape = shapes[0]
    for other in shapes[1:]:
        shape = _joined("inter", shape, other)
    return shape


def _half(sign: str, end: Node) -> Shape:
    if sign == "!=":
        return _joined("minus", _between(*_ENDS, "()"), _points((end,)))
    if sign in ("<", "<="):
        return _between(_ENDS[0], end, "()" if sign == "<" else "(]")
    return _between(end, _ENDS[1], "()" if sign == ">" else "[)")


def _between(low: Node, high: Node, brackets: str) -> Shape:
    def mask(place: dict[Node, int], slots: int) -> int:
        first, last = 2 * place[low], 2 * place[high]
        if first >= last:
            raise NotASet  # a point (3, 2), or an interval of nothing
        first += brackets[0] == "(" or low == _ENDS[0]
        last -= brackets[1] == ")" or high == _ENDS[1]
        return (1 << last + 1) - (1 << first)

    return mask


def _points(members: tuple[Node, ...]) -> Shape:
    return lambda place, slots: sum({1 << 2 * place[member] for member in members})


def _joined(kind: str, left: Shape, right: Shape) -> Shape:
    def mask(place: dict[Node, int], slots: int) -> int:
        a, b = left(place, slots), right(place, slots)
        return {"union": a | b, "inter": a & b, "minus": a & ~b}[kind]

    return mask
