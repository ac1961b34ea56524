"""What a scorer is, and how a name becomes one.

A scorer is a pure function of the answer's text and the task. It runs in a worker process, so it
must be importable there; it reads no files and no network. Nothing is imported before its first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from sandbox_rl.registry import Registry
from sandbox_rl.types import Answer, Reward, Task

JUDGE = "judge"
"""The scorer name that is answered by a model over HTTP (`rewards.judge`), not by a function."""


class BadGold(ValueError):
    """The task's gold answer cannot be used by its scorer; the message says why."""


class ComparedAsText(Exception):
    """A gold answer that its scorer does not understand and therefore compares as text; no fault."""


class Scorer(Protocol):
    """A pure function of the answer's text (normalised, not empty) and the task without its files.

    Returns:
        The reward, by custom in [0, 1]; or a mapping whose "value" is the reward and whose other
        entries are parts for the records.
    """

    def __call__(self, answer: str, task: Task, /) -> float | Mapping[str, float]: ...


class Scores(AbstractAsyncContextManager[Any], Protocol):
    """Gives answers their rewards, for an engine; an async context manager (`pool.ScoringPool`)."""

    async def score(self, task: Task, answer: Answer) -> Reward:
        """The reward of an answer; `value` None where it could not be judged."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedScorer:
    """A scorer with what is known of it.

    Args:
        check_gold: raises `BadGold` when a task's gold is unusable and may raise `ComparedAsText`; None for a
            user's own scorer.
        read: see `reads_with`.
    """

    name: str
    score: Scorer
    check_gold: Callable[[Task], object] | None
    read: Callable[[str], Any] | None


def reads_with(read: Callable[[str], Any]) -> Callable[[Scorer], Scorer]:
    """Mark a scorer of your own that has to evaluate the answer's text, as code or as an expression.

    `read(answer)` runs in a process that is made for this one answer and is given no gold; what it returns
    (a JSON value) is passed to the scorer in place of the text, in another process. So code in an answer
    can at most choose the value that is compared.
    """

    def mark(scorer: Scorer) -> Scorer:
        vars(scorer)["read_answer"] = read
        return scorer

    return mark


BUILT_IN: Mapping[str, str] = {
    "math": "sandbox_rl.rewards.maths:score",
    "choice": "sandbox_rl.rewards.choice:score",
    "exact": "sandbox_rl.rewards.overlap:exact",
    "f1": "sandbox_rl.rewards.overlap:f1",
    "rouge_l": "sandbox_rl.rewards.overlap:rouge_l",
    "numeric": "sandbox_rl.rewards.numeric:score",
    "reasoning_gym": "sandbox_rl.rewards.gym:score",
    "rules": "sandbox_rl.rewards.rules.scorer:score",
}
"""Name → function (answer, task), in a module with `check_gold(task)`."""


SCORERS: Registry[Scorer] = Registry(
    "scorer",
    BUILT_IN,
    group="sandbox_rl.scorers",
    check=callable,
    expected="a function (answer, task) -> float",
    special=(JUDGE,),
)
"""What can score answers. Those of one's own are imported in the processes that score, not in the trainer."""


def load_scorer(name: str) -> LoadedScorer:
    """Import the scorer of that name, or of the import path `package.module:function`.

    Raises:
        ConfigError: no such name, module or function.
    """
    score = SCORERS.find(name)
    check = None
    if name in BUILT_IN:
        check = importlib.import_module(BUILT_IN[name].partition(":")[0]).check_gold
    return LoadedScorer(name, score, check, getattr(score, "read_answer", None))
