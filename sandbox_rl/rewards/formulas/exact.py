"""Exact values of rational expressions, bounded in size before they are computed."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

from sandbox_rl.rewards.formulas.nodes import Node

MAX_BITS = 12_000
"""Binary digits of the numbers that are computed with: 3,600 decimal ones."""


class TooLarge(ArithmeticError):
    """Computing it would take long: it can only be compared as text."""


class Undefined(ArithmeticError):
    """It has no value here."""


def bits(value: Fraction) -> int:
    """Binary digits of the longer of its two integers."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


@lru_cache(maxsize=1024)
def exact(node: Node) -> Fraction | None:
    """Its value where that is rational and found by arithmetic alone; None where it is not.

    Raises:
        TooLarge, Undefined
    """
    if node.kind == "num":
        return node.number
    if node.kind == "based":
        return None
    known = [value for arg in node.args if (value := exact(arg)) is not None]
    if not known or len(known) < len(node.args):
        return None
    result = _exact(node, known)
    if result is not None and bits(result) > 2 * MAX_BITS:
        raise TooLarge
    return result


def _exact(node: Node, values: list[Fraction]) -> Fraction | None:
    first, last = values[0], values[-1]
    match node.kind:
        case "add":
            return sum(values, Fraction(0))
        case "neg":
            return -first
        case "mul":
            if sum(map(bits, values)) > 2 * MAX_BITS:
                raise TooLarge
            return math.prod(values, start=Fraction(1))
        case "div":
            if last == 0:
                raise Undefined
            return first / last
        case "pow":
            return _exact_power(first, last)
        case "func":
            return _exact_function(node.name, values)
    return None


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base == 0:
        if exponent <= 0:
            raise Undefined
        return Fraction(0)
    if abs(exponent) * bits(base) > MAX_BITS and abs(base) != 1:
        raise TooLarge
    if exponent.denominator == 1:
        if abs(base) == 1:
            return base if exponent.numerator % 2 else Fraction(1)
        return Fraction(base ** int(exponent))
    rooted = _root(base, exponent.denominator)
    return None if rooted is None else _exact_power(rooted, Fraction(exponent.numerator))


def _root(base: Fraction, degree: int) -> Fraction | None:
    """The real root where it is rational."""
    if degree < 1 or degree > 64 or (base < 0 and degree % 2 == 0):
        return None
    if degree > 2 and bits(base) > 2000:
        return None
    sides = []
    for side in (abs(base.numerator), base.denominator):
        if degree == 2:
            if math.isqrt(side) ** 2 != side:
                return None
            sides.append(math.isqrt(side))
            continue
        low, high = 0, 1 << (side.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= side else (low, middle - 1)
        if low**degree != side:
            return None
        sides.append(low)
    return Fraction(sides[0] if base >= 0 else -sides[0], sides[1])


def _exact_function(name: str, values: list[Fraction]) -> Fraction | None:
    first = values[0]
    integers = [int(value) for value in values if value.denominator == 1]
    match name:
        case "percent":
            return first / 100
        case "abs":
            return abs(first)
        case "floor":
            return Fraction(math.floor(first))
        case "ceil":
            return Fraction(math.ceil(first))
        case "sign":
            return Fraction((first > 0) - (first < 0))
        case "max" | "min":
            return (max if name == "max" else min)(values)
        case "sqrt" | "cbrt":
            return _root(first, 2 if name == "sqrt" else 3)
        case "root" if len(integers) and values[1].denominator == 1:
            return _root(first, int(values[1]))
        case "factorial" if len(integers) == 1:
            if first < 0:
                raise Undefined
            if first > 2000:
                raise TooLarge
            return Fraction(math.factorial(int(first)))
        case "binom" if len(integers) == 2 and min(integers) >= 0:
            if max(integers) > 2000:
                raise TooLarge
            return Fraction(math.comb(*integers))
        case "gcd" | "lcm" if len(integers) == len(values):
            return Fraction((math.gcd if name == "gcd" else math.lcm)(*integers))
    return None


def exact_or_none(node: Node) -> Fraction | None:
    """`exact`, None also where it has no value or is too large."""
    try:
        return exact(node)
    except (TooLarge, Undefined):
        return None
