"""Expressions that a policy wrote, read without evaluating them: a syntax tree, then our own arithmetic."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

_MAX_CHARS = 2048
_MAX_NODES = 400
_MAX_DEPTH = 60
_MAX_POWER = 64
_MAX_BITS = 4096


def exact_value(text: str) -> Fraction:
    """The value of a sum, difference, product and quotient of numbers, exactly.

    Raises:
        ValueError: it is anything else, too large, or divides by 0.
    """
    value: Fraction = _Reading(_fraction).value(_parse(text))
    return value


def integers(text: str) -> list[int]:
    """The integer literals of an expression, in order.

    Raises:
        ValueError: it is no expression.
    """
    constants = (node.value for node in ast.walk(_parse(text)) if isinstance(node, ast.Constant))
    return [value for value in constants if type(value) is int]


def expression(text: str, names: Iterable[str]) -> Any:
    """A sympy expression in these names, built from a syntax tree; `^` is a power.

    Functions: sin cos tan asin acos atan sinh cosh tanh exp log ln sqrt; constants: pi, E.

    Raises:
        ValueError: it is anything else, or too large.
    """
    import sympy

    known = {"pi": sympy.pi, "E": sympy.E, "e": sympy.E} | {name: sympy.Symbol(name) for name in names}
    functions = {name: getattr(sympy, name) for name in _FUNCTIONS.split()}
    reading = _Reading(lambda value: sympy.Rational(_fraction(value)), known, functions)
    return reading.value(_parse(text.replace("^", "**")))


_FUNCTIONS = "sin cos tan asin acos atan sinh cosh tanh exp log ln sqrt"


def _parse(text: str) -> ast.expr:
    text = text.strip()
    if len(text) > _MAX_CHARS or not text.isascii() or "\n" in text:
        raise ValueError("expected one line of at most 2048 ASCII characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"no expression: {error}") from error
    if sum(1 for _ in ast.walk(tree)) > _MAX_NODES:
        raise ValueError("too long an expression")
    return tree


def _fraction(value: int | float) -> Fraction:
    """A literal's exact value: of 0.1 one tenth."""
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the parts of an expression stand for.

    Args:
        number: of a literal.
        names, functions: those that may occur.
    """

    number: Callable[[int | float], Any]
    names: Mapping[str, Any] = field(default_factory=dict)
    functions: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("too deep an expression")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                    raise ValueError("too large a number")
                return self.number(value)
            case ast.Name(id=name) if name in self.names:
                return self.names[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand, depth + 1)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand, depth + 1)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in self.functions:
                return self.functions[name](self.value(argument, depth + 1))
            case ast.BinOp(left=left, op=operator, right=right):
                return _combine(self.value(left, depth + 1), operator, self.value(right, depth + 1))
        raise ValueError(f"{type(node).__name__} is not allowed")


def _combine(left: Any, operator: ast.operator, right: Any) -> Any:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            if right == 0:
                raise ValueError("a division by 0")
            return left / right
        case ast.Pow() if not isinstance(left, Fraction):
            bases_and_powers = (part for value in (left, right) for part in value.atoms())
            if any(getattr(part, "is_number", False) and abs(part) > 10**6 for part in bases_and_powers):
                raise ValueError("too large a power")
            if right.is_number and abs(right) > _MAX_POWER:
                raise ValueError("too large a power")
            return left**right
    raise ValueError(f"{type(operator).__name__} is not allowed")
