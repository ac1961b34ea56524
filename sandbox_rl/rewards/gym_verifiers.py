"""Verifiers of our own for the reasoning-gym data sets whose own evaluate the answer, or pay wrong ones.

Each gives 1.0, a part of it, or 0.0, as the original is meant to. None evaluates text: expressions are
read as syntax trees (`arithmetic`), lists as JSON or Python literals.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from sandbox_rl.rewards.arithmetic import exact_value, expression, integers

Entry = Mapping[str, Any]

_COIN_TOLERANCE = Fraction(1, 10_000)  # of the original, which takes 0 for 0.00003 then
_MAX_NUMBER_CHARS = 40


def _countdown(answer: str, entry: Entry) -> float:
    """Every given number exactly once, and exactly the target: 24 in puzzle24, which compares neither."""
    if sorted(integers(answer)) != sorted(entry["metadata"]["numbers"]):
        return 0.0
    return float(exact_value(answer) == Fraction(entry["metadata"].get("target", 24)))


def _polynomial(answer: str, entry: Entry) -> float:
    """The same expanded polynomial; the product as it was asked is no answer."""
    names = set(re.findall(r"[A-Za-z]", entry["answer"])) | set("xyz")
    return float(expression(answer, names) == expression(entry["answer"], names))


def _integral(answer: str, entry: Entry) -> float:
    """An antiderivative, with or without a constant C."""
    import sympy

    metadata = entry["metadata"]
    variable = metadata["variable"]
    said = expression(answer, (variable, "C"))
    wanted = expression(metadata["integrand"], (variable,))
    return float(sympy.simplify(sympy.diff(said, sympy.Symbol(variable)) - wanted) == 0)


def _or_as_list(share: float, joined: Callable[[list[Any]], str]) -> Callable[[str, Entry], float]:
    """A right text; a list whose items, joined, are one earns `share`."""

    def verify(answer: str, entry: Entry) -> float:
        golds = [gold.strip() for gold in entry["metadata"].get("valid_answers", (entry["answer"],))]
        return 1.0 if answer.strip() in golds else share * (joined(_literal(answer)) in golds)

    return verify


def _matrix(rows: list[Any]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows)


def _coin_flip(answer: str, entry: Entry) -> float:
    """A probability as decimal or fraction; the original also pays for the first character of it."""
    said = answer.strip()
    if len(said) > _MAX_NUMBER_CHARS or not re.fullmatch(r"[\d.]+(/\d+)?%?|\d*\.?\d+e-?\d{1,2}", said):
        return 0.0
    value = Fraction(said.rstrip("%")) / (100 if said.endswith("%") else 1)
    gold = Fraction(entry["answer"])
    return float(abs(value - gold) <= min(_COIN_TOLERANCE, gold / 100))


def _complex(answer: str, entry: Entry) -> float:
    """Real and imaginary part exactly; the original's measure of distance pays for what is near."""
    text = answer.replace(" ", "").replace("−", "-").lower().replace("j", "i")
    while len(text) > 1 and text[0] == "(" and text[-1] == ")":
        text = text[1:-1]
    number = r"\d{1,30}(?:\.\d{1,30})?"
    match = re.fullmatch(rf"([+-]?{number}(?![\d.]*\*?i))?(?:([+-]?)({number})?\*?(i))?", text)
    if not match or not text or (match[1] and match[4] and not match[2]):
        return 0.0
    real = Fraction(match[1] or 0)
    imaginary = Fraction(match[3] or 1) * (-1 if match[2] == "-" else 1) if match[4] else Fraction(0)
    return float([real, imaginary] == [Fraction(part) for part in entry["metadata"]["result"]])


def _truth(answer: str, entry: Entry) -> float:
    """True or False; to the original every text is true."""
    return float(answer.strip().casefold() == str(entry["answer"]).casefold())


def _literal(text: str) -> Any:
    """A list that is written in JSON or as a Python literal.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"no list: {error}") from error
    if not isinstance(value, list):
        raise ValueError("no list")
    return value


VERIFIERS: Mapping[str, Callable[[str, Entry], float]] = {
    "binary_matrix": _or_as_list(0.1, _matrix),
    "coin_flip": _coin_flip,
    "complex_arithmetic": _complex,
    "countdown": _countdown,
    "game_of_life_halting": _truth,
    "intermediate_integration": _integral,
    "n_queens": _or_as_list(0.5, _matrix),
    "polynomial_multiplication": _polynomial,
    "puzzle24": _countdown,
    "simple_integration": _integral,
    "spiral_matrix": _or_as_list(0.1, lambda items: " ".join(map(str, items))),
    "string_insertion": _or_as_list(0.1, lambda items: "".join(map(str, items))),
}
"""Data set → verifier. Each may raise ValueError, TypeError or KeyError, which means a wrong answer."""


def warm() -> None:
    """Import what all verifiers need: later it would count against the time of every answer."""
    import reasoning_gym  # noqa: F401

    entry = {"answer": "x**2 + x", "metadata": {"variable": "x", "integrand": "2*x + cos(x)"}}
    _integral("x**2 + sin(x) + C", entry)
    _polynomial("x**2", entry)
