"""The verifier that a reasoning-gym data set brings along.

The entry (question, answer, metadata) travels in the task's metadata, so scoring needs neither the
data set's configuration nor its seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.text import unbox
from sandbox_rl.types import Task

__all__ = ["EVALUATING", "check_gold", "score"]

FULL = 0.999
"""What a verifier must give for a right answer. Below it they pay for format, or for text that merely
contains the answer (length ratio), which rewards hedging."""

MAX_CHARS = 4096

EVALUATING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Data sets whose verifier hands the answer to `eval` or to sympy's `parse_expr`, which is `eval`."""

_WORD = re.compile(r"[A-Za-z_]\w*")
_QUOTED = re.compile(r"'[\w .-]{0,64}'|\"[\w .-]{0,64}\"")
_MATHS = frozenset(
    ("sin", "cos", "tan", "exp", "log", "ln", "sqrt", "pi", "asin", "acos", "atan", "sinh", "cosh", "tanh")
)
_HUGE = re.compile(r"(\*\*|\^)\s*(\(|[-+]?[\w.]+\s*(\*\*|\^)|[-+]?\d{4,})|\d{100}|[eE]\d{4,}|!!|factorial")
"""A tower of powers, a power by an expression, or by a number of four digits and more."""
_POWER_OF_GROUP = re.compile(r"\)\s*(?:\*\*|\^)")


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless the entry is there, its data set is known, and its own answer scores."""
    name, entry = _entry(task)
    verify = _verifier(name)
    try:
        verify(str(entry["answer"]), dict(entry))
    except Exception as error:
        raise BadGold(f"the verifier of {name!r} raises on its own answer: {error!r}") from error


def score(answer: str, task: Task) -> float:
    """1.0 if the data set's verifier gives full marks, else 0.0.

    With `metadata["partial"]` true the verifier's own value, cut to [0, 1], instead.
    """
    name, entry = _entry(task)
    answer = unbox(answer)
    if answer == entry["answer"]:
        return 1.0
    if len(answer) > MAX_CHARS or (name in EVALUATING and not _harmless(answer)):
        return 0.0
    value = float(_verifier(name)(answer, dict(entry)))
    if task.metadata.get("partial"):
        return min(max(value, 0.0), 1.0)
    return float(value >= FULL)


def _harmless(text: str) -> bool:
    """Whether evaluating the text can only do quick arithmetic: no calls by name, attributes, huge powers."""
    if _HUGE.search(text) or len(_POWER_OF_GROUP.findall(text)) > 4:
        return False
    if re.search(r"[A-Za-z_)\]'\"]\s*\.\s*[A-Za-z_]", text):
        return False
    words = _WORD.findall(_QUOTED.sub("''", text))
    return all(len(word) == 1 or word in _MATHS for word in words)


def _entry(task: Task) -> tuple[str, Mapping[str, Any]]:
    name, entry = task.metadata.get("dataset"), task.metadata.get("entry")
    if not isinstance(name, str) or not isinstance(entry, Mapping):
        raise BadGold("metadata must hold 'dataset' (its name) and 'entry' (question, answer, metadata)")
    if not isinstance(entry.get("answer"), str) or not isinstance(entry.get("metadata"), Mapping):
        raise BadGold(f"the entry of {name!r} lacks its 'answer' or 'metadata'")
    return name, entry


@lru_cache(maxsize=128)
def _verifier(name: str) -> Callable[[str, dict[str, Any]], float]:
    # Importing all generators takes a second: only the worker that needs one pays for it.
    import reasoning_gym

    try:
        verifier: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(name)
    except ValueError as error:
        raise BadGold(f"reasoning-gym has no data set {name!r}") from error
    return verifier
