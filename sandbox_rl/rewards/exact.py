"""Exact match after folding of case, width and white space."""

from __future__ import annotations

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.text import fold
from sandbox_rl.types import Task

__all__ = ["check_gold", "golds", "score"]


def golds(task: Task) -> tuple[str, ...]:
    """The gold answer and the spellings in `metadata["aliases"]`.

    Raises:
        BadGold: the answer is not text or is empty, or the aliases are not a list of text.
    """
    aliases = task.metadata.get("aliases", ())
    if isinstance(aliases, str) or not all(isinstance(alias, str) for alias in aliases):
        raise BadGold("metadata 'aliases' must be a list of strings")
    if not isinstance(task.answer, str) or not task.answer.strip():
        raise BadGold(f"the gold answer is {task.answer!r}; expected text")
    return (task.answer, *aliases)


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless there is text to compare with."""
    golds(task)


def score(answer: str, task: Task) -> float:
    """1.0 if the answer is one of the gold spellings, else 0.0."""
    return float(fold(answer) in {fold(gold) for gold in golds(task)})
