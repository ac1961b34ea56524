"""Token F1 as SQuAD measures it."""

from __future__ import annotations

from collections import Counter

from sandbox_rl.rewards.exact import golds
from sandbox_rl.rewards.text import squad_tokens
from sandbox_rl.types import Task

__all__ = ["check_gold", "score"]


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless there is text to compare with."""
    golds(task)


def score(answer: str, task: Task) -> float:
    """Harmonic mean of token precision and recall, the best over the gold spellings, in [0, 1].

    Source: the official SQuAD 1.1 evaluation script (Rajpurkar et al., 2016).
    """
    said = squad_tokens(answer)
    return max(_f1(said, squad_tokens(gold)) for gold in golds(task))


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))
