"""ROUGE-L over the words that carry meaning, with a floor."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from sandbox_rl.rewards.exact import golds
from sandbox_rl.rewards.text import typeset
from sandbox_rl.types import Task

__all__ = ["FLOOR", "check_gold", "score"]

FLOOR = 0.3
"""A lower F-measure is chance overlap and earns 0."""

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for from by with and or but if as is are was were be been being it its this "
        "that these those he she they we you i his her their our your do does did has have had",
    )
)
_WORD = re.compile(r"\^-?\d+[+-]?(?!\w)|(?<![\w.])-\d+(?:\.\d+)?|(?<![\w.])\.\d+|\d+\.\d+|[^\W_]+")
"""Words, numbers with their sign and decimal point, and what is raised: powers and charges."""
_CELLS = 2_000_000
"""Most cells of the table of common subsequences: about a second of work."""


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless there is text to compare with."""
    golds(task)


def score(answer: str, task: Task) -> float:
    """ROUGE-L F-measure over stemmed words without stop words, the best over the golds, 0 below `FLOOR`.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries" (2004); `rouge-score`.
    """
    said = typeset(answer)
    return max(_f_measure(said, typeset(gold)) for gold in golds(task))


class _Words:
    """The tokenizer that rouge-score asks for."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped,unused-ignore]

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        kept = [word for word in words if word not in _STOP_WORDS]
        return [self._stem(word) for word in kept]


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def _f_measure(answer: str, gold: str) -> float:
    if answer.split() == gold.split():
        return 1.0  # also when the gold holds nothing but stop words
    if len(_WORD.findall(answer)) * len(_WORD.findall(gold)) > _CELLS:
        return 0.0  # far longer than any answer to this gold
    value = float(_scorer().score(gold, answer)["rougeL"].fmeasure)
    return value if value >= FLOOR else 0.0
