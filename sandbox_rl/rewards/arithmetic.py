"""Expressions that a policy wrote, read without evaluating them: a syntax tree, then our own arithmetic."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

__all__ = ["exact_value", "expression", "integers"]

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
    value: Fraction = _walk(_parse(text), _fraction, _no_name, _no_call)
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
    functions = {name: getattr(sympy, name) for name in _FUNCTIONS}

    def named(name: str) -> Any:
        if name not in known:
            raise ValueError(f"unknown name {name!r}")
        return known[name]

    def called(name: str, argument: Any) -> Any:
        if name not in functions:
            raise ValueError(f"unknown function {name!r}")
        return functions[name](argument)

    def number(value: int | float, source: str) -> Any:
        return sympy.Integer(value) if isinstance(value, int) else sympy.Rational(Fraction(source))

    return _walk(_parse(text.replace("^", "**")), number, named, called)


_FUNCTIONS = (
    *("sin", "cos", "tan", "asin", "acos", "atan"),
    *("sinh", "cosh", "tanh", "exp", "log", "ln", "sqrt"),
)


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


def _fraction(value: int | float, source: str) -> Fraction:
    return Fraction(value) if isinstance(value, int) else Fraction(source)


def _no_name(name: str) -> Any:
    raise ValueError(f"a name ({name!r}) where numbers are expected")


def _no_call(name: str, argument: Any) -> Any:
    raise ValueError("a call where numbers are expected")


def _walk(
    node: ast.expr,
    number: Callable[[int | float, str], Any],
    named: Callable[[str], Any],
    called: Callable[[str, Any], Any],
    depth: int = 0,
) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("too deep an expression")

    def inner(child: ast.expr) -> Any:
        return _walk(child, number, named, called, depth + 1)

    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise ValueError("too large a number")
            return number(value, repr(value))
        case ast.Name(id=name):
            return named(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -inner(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return inner(operand)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            return called(name, inner(argument))
        case ast.BinOp(left=left, op=operator, right=right):
            return _combine(inner(left), operator, inner(right))
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
