"""Scorers that compare words: exact match, token F1 and ROUGE-L, the best over the spellings of the gold."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.text import fold, squad_tokens, typeset
from sandbox_rl.types import Task

FLOOR = 0.3
"""A lower F-measure is chance overlap and earns 0."""

_WORDS = """
a an the of in on at to for from by with and or but if as is are was were be been being it its this that these
those he she they we you i his her their our your do does did has have had
"""
_STOP_WORDS = frozenset(_WORDS.split())
_WORD = re.compile(r"\^-?\d+[+-]?(?!\w)|(?<![\w.])-\d+(?:\.\d+)?|(?<![\w.])\.\d+|\d+\.\d+|[^\W_]+")
"""Words, numbers with their sign and decimal point, and what is raised: powers and charges."""
_CELLS = 2_000_000
"""Most cells of the table of common subsequences: about a second of work."""


def check_gold(task: Task) -> tuple[str, ...]:
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


def exact(answer: str, task: Task) -> float:
    """1.0 if the answer is one of the gold spellings, else 0.0."""
    return float(fold(answer) in {fold(gold) for gold in check_gold(task)})


def f1(answer: str, task: Task) -> float:
    """Harmonic mean of token precision and recall, the best over the gold spellings, in [0, 1].

    Source: the official SQuAD 1.1 evaluation script (Rajpurkar et al., 2016).
    """
    said = squad_tokens(answer)
    return max(_f1(said, squad_tokens(gold)) for gold in check_gold(task))


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def rouge_l(answer: str, task: Task) -> float:
    """ROUGE-L F-measure over stemmed words without stop words, the best over the golds, 0 below `FLOOR`.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries" (2004); `rouge-score`.
    """
    said = typeset(answer)
    return max(_f_measure(said, typeset(gold)) for gold in check_gold(task))


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
