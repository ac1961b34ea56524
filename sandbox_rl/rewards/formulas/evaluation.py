"""One expression with mpmath, where its variables take pseudo-random values."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from sandbox_rl.rewards.formulas.exact import MAX_BITS, TooLarge, Undefined, bits, exact_or_none
from sandbox_rl.rewards.formulas.nodes import Node


class Evaluation:
    """One evaluation with mpmath.

    Args:
        trial: which values the variables take; 0 is all positive.
        base: of logarithms whose text leaves it open, 0 for the natural one.
    """

    def __init__(self, trial: int, base: int, digits: int) -> None:
        import mpmath

        self._mp = mpmath.mp.clone()
        self._mp.prec = digits
        self._trial = trial
        self._base = base
        self._functions = self._table()
        self.largest = 0

    def value(self, node: Node) -> Any:
        """Its value; `largest` grows to the largest magnitude on the way, as a power of two."""
        value = self._value(node)
        if value != 0:
            if not self._mp.isfinite(value):
                raise Undefined
            size = abs(self._mp.mag(value))
            if size > MAX_BITS:
                raise TooLarge
            self.largest = max(self.largest, size)
        return value

    def _value(self, node: Node) -> Any:
        mp = self._mp
        match node.kind:
            case "num":
                assert node.number is not None
                if bits(node.number) > MAX_BITS:
                    raise TooLarge
                self.largest = max(self.largest, bits(node.number))
                return mp.mpf(node.number.numerator) / node.number.denominator
            case "sym":
                return self._point(node.name)
            case "const":
                constants = {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}
                if node.name not in constants:
                    raise Undefined
                return constants[node.name]
        values = [self.value(arg) for arg in node.args]
        match node.kind:
            case "add":
                return mp.fsum(values)
            case "neg":
                return -values[0]
            case "mul":
                return mp.fprod(values)
            case "div":
                return self._over(values[0], values[1])
            case "pow":
                return self._power(values[0], values[1], exact_or_none(node.args[1]))
            case "log":
                return self._over(
                    self._log(values[0]), self._log(mp.mpf(self._base)) if self._base else mp.mpf(1)
                )
            case "func":
                return self._call(node.name, values)
        raise Undefined

    def _over(self, above: Any, below: Any) -> Any:
        if self._negligible(below):
            raise Undefined
        return above / below

    def _negligible(self, value: Any) -> bool:
        return bool(value == 0 or self._mp.mag(value) < 64 - self._mp.prec)

    def _point(self, name: str) -> Any:
        seed = zlib.crc32(f"{name}/{self._trial}".encode(errors="replace"))
        point = self._mp.sqrt(self._mp.mpf(seed) / 2**32 * 7 + self._mp.mpf(1) / 3)
        negative = self._trial == 1 or (self._trial > 1 and seed >> self._trial & 1)
        return -point if negative else point

    def _power(self, base: Any, exponent: Any, fraction: Fraction | None) -> Any:
        mp = self._mp
        if self._negligible(base):
            if mp.re(exponent) <= 0:
                raise Undefined
            return mp.mpf(0)
        if abs(exponent) * (abs(mp.mag(base)) + 2) > MAX_BITS:
            raise TooLarge
        if fraction is not None and fraction.denominator == 1:
            return base ** int(fraction)
        if fraction is not None and fraction.denominator % 2 and mp.im(base) == 0 and base < 0:
            if fraction.denominator > 1000:
                raise Undefined
            return (-mp.root(-base, fraction.denominator)) ** int(fraction.numerator)
        return mp.power(base, exponent)

    def _log(self, value: Any) -> Any:
        if self._negligible(value):
            raise Undefined
        return self._mp.log(value)

    def _call(self, name: str, values: list[Any]) -> Any:
        mp = self._mp
        first = values[0]
        if name == "f:cross":  # v × w = −w × v
            return self._call("f:bracket", values) - self._call("f:bracket", values[::-1])
        if name.startswith(("f:", "mark:")):  # an unknown function: any fixed one that is not linear
            total = self._point(name)
            for place, value in enumerate(values):
                total += mp.sin(value * self._point(f"{name}{place}")) * (place + 2)
            return total
        if name == "exp":
            return self._power(+mp.e, first, None)
        if name == "logbase":
            return self._over(self._log(first), self._log(values[1]))
        if name == "root":
            degree = int(values[1]) if mp.im(values[1]) == 0 and values[1] == int(values[1]) else 0
            if not 1 <= degree <= 1000:
                raise Undefined
            if mp.im(first) == 0 and first < 0 and degree % 2:
                return -mp.root(-first, degree)
            return mp.root(first, degree)
        if name in ("floor", "ceil", "gcd", "lcm", "max", "min", "sign", "re", "im"):
            return self._discrete(name, values)
        if name == "factorial" or name == "binom":
            if any(abs(value) > 2000 for value in values):
                raise TooLarge
            return mp.factorial(first) if name == "factorial" else mp.binomial(first, values[1])
        if name not in self._functions or abs(mp.mag(first) if first != 0 else 0) > 200:
            raise Undefined
        if name in ("tan", "sec") and self._negligible(mp.cos(first)):
            raise Undefined
        if name in ("cot", "csc", "coth") and self._negligible(mp.sin(first)):
            raise Undefined
        if name in ("sinh", "cosh", "tanh", "coth") and abs(first) > MAX_BITS / 2:
            raise TooLarge
        return self._functions[name](first)

    def _discrete(self, name: str, values: list[Any]) -> Any:
        mp = self._mp
        if name in ("re", "im"):
            return mp.re(values[0]) if name == "re" else mp.im(values[0])
        if name in ("gcd", "lcm") or any(mp.im(value) != 0 for value in values):
            raise Undefined
        if name in ("max", "min"):
            return (max if name == "max" else min)(values)
        return {"floor": mp.floor, "ceil": mp.ceil, "sign": mp.sign}[name](values[0])

    def _table(self) -> dict[str, Callable[[Any], Any]]:
        mp = self._mp
        angles = ("sin", "cos", "tan", "cot", "sec", "csc")
        same = (*angles, "sinh", "cosh", "tanh", "coth", "asinh", "acosh", "atanh", "sqrt")
        return {
            **{name: getattr(mp, name) for name in same},
            **{f"arc{name}": getattr(mp, f"a{name}") for name in angles},
            "abs": abs,
            "ln": self._log,
            "degrees": lambda value: value * mp.pi / 180,
            "percent": lambda value: value / 100,
            "cbrt": lambda value: self._call("root", [value, mp.mpf(3)]),
            "log2": lambda value: self._log(value) / mp.log(2),
            "log10": lambda value: self._log(value) / mp.log(10),
        }
