"""Numbers within a tolerance, with their units."""

from __future__ import annotations

import re
from fractions import Fraction

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.formulas.answers import read
from sandbox_rl.rewards.formulas.exact import exact_or_none
from sandbox_rl.rewards.formulas.nodes import Node, is_name, is_plain
from sandbox_rl.rewards.formulas.quantities import quantities
from sandbox_rl.rewards.formulas.tokens import Unread
from sandbox_rl.rewards.units import NO_UNIT, converted, parse_unit
from sandbox_rl.types import Task

REL_TOL = 1e-3
"""Relative tolerance of a task that names none in `metadata["rel_tol"]`."""


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless the gold is one number and the tolerances are numbers from 0."""
    _gold(task.answer)
    _tolerances(task)


def score(answer: str, task: Task) -> float:
    """1.0 if |answer − gold| ≤ max(rel_tol · |gold|, abs_tol) in the gold's unit, else 0.0.

    The tolerances are `metadata["rel_tol"]` (default 0.001) and `metadata["abs_tol"]` (default 0).
    """
    gold, unit = _gold(task.answer)
    relative, absolute = _tolerances(task)
    said = _number(answer)
    if said is None:
        return 0.0
    bound = max(relative * abs(gold), absolute)
    return float(any(abs(value - gold) <= bound for value in _in_unit(*said, unit)))


def _in_unit(value: Fraction, said: str, gold: str) -> list[Fraction]:
    """What the answer's number may be in the gold's unit.

    A unit left out is forgiven, and so is one beside a bare gold number; per cent changes the value.
    """
    first, second = parse_unit(said), parse_unit(gold)
    if first is None or second is None:  # items, such as apples
        return [value] if said.casefold() == gold.casefold() or not said else []
    if first == NO_UNIT:
        return [value, value * 100] if second.dimension == "percent" else [value]
    if second == NO_UNIT:
        return [value / 100] if first.dimension == "percent" else [value]
    there = converted(value, first, second)
    return [] if there is None else [there]


def _number(text: str) -> tuple[Fraction, str] | None:
    """The one number that a text states, and how its unit is spelled."""
    text = re.sub(r"(?<![\d.])(\d+)[eE]([-+]\d)(?!\d)", r"\1.0e\2", text)  # 5e-3: never 5·e - 3 here
    try:
        node = read(text)
    except Unread:
        return None
    if node.kind == "rel" and node.name == "=" and is_name(node.args[0]):
        node = node.args[1]  # x = 5
    node, unit = quantities(node)
    value = exact_or_none(node) if is_plain(node) or _scientific(node) else None
    return None if value is None else (value, unit)


def _scientific(node: Node) -> bool:
    """a · 10^n, 10^n, with a sign or without."""
    if node.kind == "neg":
        return _scientific(node.args[0])
    if node.kind == "mul":
        return len(node.args) == 2 and is_plain(node.args[0]) and _scientific(node.args[1])
    if node.kind != "pow":
        return False
    return node.args[0].number == 10 and is_plain(node.args[1])


def _gold(text: str) -> tuple[Fraction, str]:
    gold = _number(text) if isinstance(text, str) else None
    if gold is None:
        raise BadGold(f"the gold answer is {text!r}; expected one number, with or without a unit")
    return gold


def _tolerances(task: Task) -> tuple[Fraction, Fraction]:
    values = []
    for name, default in (("rel_tol", REL_TOL), ("abs_tol", 0.0)):
        value = task.metadata.get(name, default)
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise BadGold(f"metadata {name!r} is {value!r}; expected a number from 0")
        values.append(Fraction(value))
    return values[0], values[1]
