"""Values with units: converted where their dimensions agree, never dropped."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from sandbox_rl.rewards.formulas.exact import exact_or_none
from sandbox_rl.rewards.formulas.nodes import Node
from sandbox_rl.rewards.formulas.values import same_value
from sandbox_rl.rewards.units import NO_UNIT, Unit, converted, parse_unit

Same = Callable[[Node, Node], bool]

_SPACED = Node("text", name="spaced")


def quantities(node: Node) -> tuple[Node, str]:
    """A value and its unit's spelling, "" without one."""
    return (node.args[0], node.name) if node.kind == "quantity" else (node, "")


def same_quantities(said: Node, gold: Node, same: Same) -> bool:
    """Whether two values of which one has a unit are one, by `same` of values without."""
    readings = [_product(node) for node in (said, gold)]
    if readings[0] is not None and readings[1] is not None and same(readings[0], readings[1]):
        return True
    (value, spelled), (wanted, unit) = quantities(said), quantities(gold)
    if spelled and unit:
        return _with_units(value, spelled, wanted, unit, same)
    if spelled:  # a unit beside a bare gold
        known = parse_unit(spelled)
        return known is not None and _is_unit(said) and _without(value, known, gold, same)
    known = parse_unit(unit) or NO_UNIT
    if not _is_unit(gold):
        return False
    if same(said, wanted):
        return True
    return known.dimension in ("percent", "degree") and same(said, _scaled(wanted, known))


def _product(node: Node) -> Node | None:
    if node.kind != "quantity":
        return node
    return node.args[1] if len(node.args) > 1 else None


def _is_unit(node: Node) -> bool:
    """Whether the letters behind the value are surely a unit."""
    return len(node.args) == 1 or _SPACED in node.args


def _without(value: Node, unit: Unit, gold: Node, same: Same) -> bool:
    if unit.dimension == "percent":
        return same(_scaled(value, unit), gold)
    return same(value, gold) or (unit.dimension == "degree" and same(_scaled(value, unit), gold))


def _scaled(value: Node, unit: Unit) -> Node:
    return Node("func", (value,), "percent" if unit.dimension == "percent" else "degrees")


def _with_units(value: Node, spelled: str, wanted: Node, unit: str, same: Same) -> bool:
    first, second = parse_unit(spelled), parse_unit(unit)
    if first is None or second is None:
        return first is second and spelled.casefold() == unit.casefold() and same(value, wanted)
    if first == second:
        return same(value, wanted)
    if first.dimension != second.dimension:
        turned = {first.dimension: value, second.dimension: wanted}
        if turned.keys() != {"degree", "radian"}:
            return False
        return same(Node("func", (turned["degree"],), "degrees"), turned["radian"])
    if first.offset or second.offset:
        number = exact_or_none(value)
        return number is not None and exact_or_none(wanted) == converted(number, first, second)
    factor = Node("num", number=Fraction(first.factor / second.factor))
    return same_value(Node("mul", (factor, value)), wanted)
