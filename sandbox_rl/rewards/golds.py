"""Looking at every gold answer before a run, in this process: they are the user's own text.

A gold answer that `math` does not understand is sound: it is compared as text, and counted by its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sandbox_rl.rewards.base import BUILT_IN, JUDGE, ComparedAsText, load_scorer
from sandbox_rl.types import Task

__all__ = ["GoldReport", "check_golds"]

IN_WORKERS = frozenset({"reasoning_gym"})
"""Scorers whose gold answers are looked at in scoring processes, since their library is imported there."""


@dataclass(frozen=True, slots=True)
class GoldReport:
    """What is to be known of gold answers.

    Args:
        bad: task id → reason, for those that their scorer cannot use.
        as_text: source (the task's domain) → task id → reason, for those that are compared as text.
        in_workers: places of the tasks whose scorers are looked at in scoring processes (`IN_WORKERS`).
        seen: how many tasks there are.
    """

    bad: Mapping[str, str]
    as_text: Mapping[str, Mapping[str, str]]
    in_workers: tuple[int, ...]
    seen: int

    def __str__(self) -> str:
        """One line per source that has gold answers compared as text; "" where none has."""
        lines = []
        for source, found in self.as_text.items():
            first, reason = next(iter(found.items()))
            lines.append(f"{source}: {len(found)} compared as text, such as task {first!r} ({reason})")
        return "; ".join(lines)


def check_golds(tasks: Iterable[Task], scorers: Sequence[str] = ()) -> GoldReport:
    """Look at the gold answer of every task; about five thousand a second.

    Args:
        scorers: names that replace every task's own scorer.
    """
    bad: dict[str, str] = {}
    as_text: dict[str, dict[str, str]] = {}
    in_workers: list[int] = []
    seen = 0
    for place, task in enumerate(tasks):
        seen = place + 1
        for name in scorers or (task.scorer,):
            if name in IN_WORKERS:
                in_workers.append(place)
            if name == JUDGE or name in IN_WORKERS or name not in BUILT_IN:
                continue
            check = load_scorer(name).check_gold
            try:
                if check is not None:
                    check(task)
            except ComparedAsText as error:
                as_text.setdefault(task.domain, {})[task.id] = str(error)
            except Exception as error:  # metadata of any shape reaches the checks
                bad.setdefault(task.id, f"{type(error).__name__}: {error}"[:300])
    return GoldReport(bad, as_text, tuple(in_workers), seen)
