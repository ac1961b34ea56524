r"""Mathematical equality of one answer with the gold answer.

math-verify decides equality of expressions, but it picks an answer out of a text and forgives what
stands beside it. Here the whole text must state one answer (`latex.read`); members, brackets, words
and units are compared first; only expressions reach math-verify, and only harmless ones.
"""

from __future__ import annotations

import cmath
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.latex import Element, Reading, read
from sandbox_rl.rewards.text import fold
from sandbox_rl.rewards.units import NO_UNIT, parse_unit
from sandbox_rl.types import Task

__all__ = ["check_gold", "equal", "number_of", "score", "unit_scale"]

_SECONDS = 2
"""Whole seconds of one parse and of one comparison; the pool's hard limit stands behind them."""

_NUMBER = re.compile(r"([-+]?)(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?")
_FRACTION = re.compile(r"([-+]?)\\frac\{?(-?\d+)\}?\{?(\d+)\}?")
_SCIENTIFIC = re.compile(
    r"([-+]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}))(?:[eE]|\\(?:times|cdot)10\^)\{?([-+]?\d{1,3})\}?"
)
_PERCENT = Fraction(1, 100)


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless the gold answer can be read, and parsed where it is an expression."""
    gold = _gold(task.answer)
    for element in gold.elements:
        if gold.heavy or not element.expression or number_of(element.expression) is not None:
            continue
        if not _parse(element.expression):
            raise BadGold(f"the gold answer {task.answer!r} cannot be parsed as mathematics")


def score(answer: str, task: Task) -> float:
    """1.0 if the answer states the gold value and nothing else, else 0.0."""
    return float(equal(answer, task.answer))


def equal(answer: str, gold_text: str) -> bool:
    """Whether `answer` states exactly what `gold_text` states.

    Raises:
        BadGold: the gold answer cannot be read.
    """
    gold = _gold(gold_text)
    said = read(answer)
    if said is None or len(said.elements) != len(gold.elements):
        return False
    if said.bracket != gold.bracket and {said.bracket, gold.bracket} != {"", "{}"}:
        return False
    heavy = said.heavy or gold.heavy
    if len(gold.elements) == 1 or gold.bracket not in ("", "{}"):
        return all(_same(*pair, heavy=heavy) for pair in zip(said.elements, gold.elements, strict=True))
    left = list(gold.elements)
    for element in said.elements:
        match = next((other for other in left if _same(element, other, heavy=heavy)), None)
        if match is None:
            return False
        left.remove(match)
    return True


@lru_cache(maxsize=256)
def _gold(text: str) -> Reading:
    reading = read(text) if isinstance(text, str) else None
    if reading is None:
        raise BadGold(f"the gold answer {text!r} is not one mathematical answer")
    return reading


def _same(said: Element, gold: Element, *, heavy: bool) -> bool:
    if said.variable and gold.variable and said.variable != gold.variable:
        return False
    if not gold.expression:  # the gold is a word
        return not said.expression and fold(said.words) == fold(gold.words)
    scale = unit_scale(said.words, gold.words)
    if scale is None or not said.expression:
        return False
    return _equal_expressions(said.expression, gold.expression, scale, heavy=heavy)


def unit_scale(said: str, gold: str) -> Fraction | None:
    """What the answer's number is to be multiplied with to be in the gold's unit; None if it cannot be.

    A unit left out is forgiven, and so is one added to a bare gold number, except per cent, which
    changes the value. Words that are no unit must be the gold's words.
    """
    if fold(said) == fold(gold):
        return Fraction(1)
    said_unit, gold_unit = parse_unit(said), parse_unit(gold)
    if said_unit is None or (gold_unit is None and said):
        return None
    if gold_unit is None:
        return None
    if said_unit == NO_UNIT:
        return Fraction(1)
    if gold_unit == NO_UNIT:
        return _PERCENT if said_unit.dimension == "percent" else Fraction(1)
    if said_unit.dimension != gold_unit.dimension:
        return None
    return said_unit.factor / gold_unit.factor


def _equal_expressions(said: str, gold: str, scale: Fraction, *, heavy: bool) -> bool:
    if said.replace(" ", "") == gold.replace(" ", ""):
        return scale == 1
    said_number, gold_number = number_of(said), number_of(gold)
    if said_number is not None and gold_number is not None:
        return said_number * scale == gold_number
    if heavy or scale != 1 or ("=" in said) != ("=" in gold) or _is_word(said) or _is_word(gold):
        return False
    parsed, expected = _parse(said), _parse(gold)
    if not parsed or not expected or _differ(parsed[0], expected[0]):
        return False
    return _verify(expected, parsed)


def number_of(expression: str) -> Fraction | None:
    """The exact value of a plain number or fraction of two integers; None for any other expression."""
    text = expression.replace(" ", "")
    if match := _FRACTION.fullmatch(text) or _NUMBER.fullmatch(text):
        sign, above, below = match.groups()
    elif match := _SCIENTIFIC.fullmatch(text):
        return Fraction(match.group(1)) * Fraction(10) ** int(match.group(2))
    else:
        return None
    if len(text) > 300 or (below is not None and int(below) == 0):
        return None
    return (-1 if sign == "-" else 1) * Fraction(above) / int(below or 1)


def _is_word(expression: str) -> bool:
    """Letters that are a word or a name rather than a product: math-verify holds "cat" for "tac"."""
    return re.fullmatch(r"[A-Za-z]{3,}", expression) is not None


@lru_cache(maxsize=512)
def _parse(expression: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    text = expression.replace("*", r"\cdot ")
    parsed: list[Any] = parse(
        f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=_SECONDS
    )
    return [value for value in parsed if not isinstance(value, str)]


def _differ(said: Any, gold: Any) -> bool:
    """Whether two expressions have clearly different values at one point.

    Most wrong answers end here, twenty times faster than by failing to simplify a difference to zero.
    """
    from sympy import Expr, Rational  # type: ignore[import-untyped,unused-ignore]

    if not isinstance(said, Expr) or not isinstance(gold, Expr):
        return False
    names = sorted({symbol.name for symbol in said.free_symbols | gold.free_symbols})
    point = {name: Rational(17 + 6 * at, 13 + 2 * at) for at, name in enumerate(names)}
    try:
        values = [
            complex(
                expression.subs({symbol: point[symbol.name] for symbol in expression.free_symbols}).evalf()
            )
            for expression in (said, gold)
        ]
    except (TypeError, ValueError, ArithmeticError):
        return False  # no number there, so nothing is shown
    if not all(map(cmath.isfinite, values)):
        return False
    return abs(values[0] - values[1]) > 1e-4 * max(1.0, *map(abs, values))


def _verify(gold: list[Any], said: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, said, timeout_seconds=_SECONDS))
