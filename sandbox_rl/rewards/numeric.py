"""Numbers within a tolerance, with their units."""

from __future__ import annotations

from fractions import Fraction

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.latex import read
from sandbox_rl.rewards.maths import number_of, unit_scale
from sandbox_rl.types import Task

__all__ = ["check_gold", "score"]

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
    gold, gold_words = _gold(task.answer)
    relative, absolute = _tolerances(task)
    said = _number(answer)
    if said is None:
        return 0.0
    scale = unit_scale(said[1], gold_words)
    if scale is None:
        return 0.0
    return float(abs(said[0] * scale - gold) <= max(relative * abs(gold), absolute))


def _number(text: str) -> tuple[Fraction, str] | None:
    reading = read(text)
    if reading is None or len(reading.elements) != 1 or reading.bracket:
        return None
    value = number_of(reading.elements[0].expression)
    return None if value is None else (value, reading.elements[0].words)


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
