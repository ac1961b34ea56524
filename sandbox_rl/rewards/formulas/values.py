"""Whether two expressions have one value, exactly and in bounded time.

Rational numbers are computed as such. For the rest both sides are evaluated where their variables take
pseudo-random values, with enough digits that two different short expressions cannot agree by chance: twice
the largest magnitude met, plus 200 bits (the identity test of Schwartz and Zippel, over the reals, with
mpmath). Sizes are bounded before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox_rl.rewards.formulas.evaluation import Evaluation
from sandbox_rl.rewards.formulas.exact import TooLarge, Undefined, exact
from sandbox_rl.rewards.formulas.nodes import Node, infinite, symbols, walk

MAX_WORK = 200_000
"""Bits times functions of one evaluation: some ten milliseconds."""
TRIALS = 4
_COSTLY = frozenset({"pow", "func", "log"})


def _evaluate(nodes: Sequence[Node], trial: int, base: int) -> tuple[list[Any], Any]:
    """Their values at one point, and what their difference may be at most when they are equal."""
    first = Evaluation(trial, base, 80)
    for node in nodes:
        first.value(node)
    digits = 2 * first.largest + 200
    costly = sum(part.kind in _COSTLY for node in nodes for part in walk(node))
    if digits * costly > MAX_WORK:
        raise TooLarge
    second = Evaluation(trial, base, digits)
    values = [second.value(node) for node in nodes]
    return values, second._mp.mpf(2) ** -(first.largest + 100)


def same_value(said: Node, gold: Node) -> bool:
    """Whether they are equal for all values of their variables.

    Raises:
        TooLarge: that cannot be found out in bounded time.
    """
    if said == gold:
        return True
    if not symbols(said) <= symbols(gold):
        return False
    try:
        left, right = exact(said), exact(gold)
    except Undefined:
        return False
    if left is not None and right is not None:
        return left == right
    has_log = any(part.kind == "log" for node in (said, gold) for part in walk(node))
    return any(_agree(said, gold, base) for base in ((0, 10) if has_log else (0,)))


def _agree(said: Node, gold: Node, base: int) -> bool:
    held = 0
    for trial in range(TRIALS if symbols(gold) else 1):
        try:
            (left, right), bound = _evaluate((said, gold), trial, base)
        except (Undefined, ZeroDivisionError, ValueError):
            continue
        if abs(left - right) > bound:
            return False
        held += 1
    return held >= (2 if symbols(gold) else 1)


def proportional(said: Node, gold: Node) -> int:
    """The sign of the constant c ≠ 0 with said = c · gold for all values of the variables, else 0.

    Raises:
        TooLarge: that cannot be found out in bounded time.
    """
    if symbols(said) != symbols(gold) or not symbols(gold):
        return 0
    sign, before = 0, None
    for trial in range(TRIALS):
        try:
            (left, right), bound = _evaluate((said, gold), trial, 0)
        except (Undefined, ZeroDivisionError, ValueError):
            continue
        if abs(left) <= bound or abs(right) <= bound:
            return 0
        ratio = left / right
        if getattr(ratio, "imag", 0) != 0 or (
            before is not None and abs(ratio - before) > bound * max(1, abs(ratio))
        ):
            return 0
        before, sign = ratio, 1 if ratio.real > 0 else -1
    return sign


def order(left: Node, right: Node) -> int:
    """-1, 0 or 1 as `left` is less than, equal to or greater than `right`, both real constants or ±∞.

    Raises:
        TooLarge, Undefined
    """
    ends = [infinite(node) for node in (left, right)]
    if any(ends):
        return (ends[0] > ends[1]) - (ends[0] < ends[1])
    if symbols(left) or symbols(right):
        raise Undefined
    if same_value(left, right):
        return 0
    (a, b), _ = _evaluate((left, right), 0, 0)
    if getattr(a, "imag", 0) != 0 or getattr(b, "imag", 0) != 0:
        raise Undefined
    return -1 if a < b else 1
