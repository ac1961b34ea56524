"""Scoring jobs that wait for a worker: the cheapest first."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sandbox_rl.rewards.connection import Outcome

_TOGETHER = 16
"""Jobs that one process is given at most, of scorers that are known not to evaluate text."""

_PATIENCE_S = 1.0
_EVERY = 8
"""What has waited so long behind cheaper jobs gets one of so many turns."""

_IN_A_ROW = 3
"""Jobs of a scorer that used up the first slice, none between them that did not, until it is expensive."""


@dataclass(slots=True, eq=False)
class Job:
    """An item to be scored.

    Args:
        item: JSON.
        scorer: whose habits count for it.
        together: may share a process with others.
        done: what became of it.
        level: number of slices that it has used up.
        lost: workers that ended under it.
        dataset: whose verifier scores it, "" for none.
        waits_since: when it was put where it waits, by `time.monotonic`.
    """

    item: bytes
    scorer: str
    together: bool
    done: asyncio.Future[Outcome]
    level: int = 0
    lost: int = 0
    dataset: str = ""
    waits_since: float = 0.0

    def settle(self, outcome: Outcome) -> None:
        """Say what became of it; the first word holds."""
        if not self.done.done():
            self.done.set_result(outcome)


class Habits:
    """Which scorers are expensive whatever they are given, so that the first slice is wasted on them."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()

    def used(self, job: Job, *, first_slice_up: bool) -> None:
        """Note what a job needed."""
        self._in_a_row[job.scorer] = self._in_a_row[job.scorer] + 1 if first_slice_up else 0

    def expensive(self, job: Job) -> bool:
        """Whether its scorer is. One cheap answer ends that, so hostile answers cannot bring it about."""
        return self._in_a_row[job.scorer] >= _IN_A_ROW


class Lane:
    """Jobs that wait, by level, and the number of those that are being done.

    Args:
        levels: that this lane serves.
        workers: that take from here. One of them, if there are several, takes only jobs of the lowest level.
        habits: jobs of expensive scorers skip level 0, if there is another.
    """

    def __init__(self, levels: range, workers: int, habits: Habits) -> None:
        self._queues = {level: deque[Job]() for level in levels}
        self._lowest = levels[0]
        self._most_above = max(1, workers - 1)
        self._above = self._taken = self._turns = 0
        self._habits = habits
        self._news = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether jobs wait or are being done."""
        return self._taken > 0 or any(self._queues.values())

    def put(self, jobs: Sequence[Job], *, first: bool = False) -> None:
        """Have jobs of one level wait, in their order, behind or before the others."""
        queue, now = self._queues[jobs[0].level], time.monotonic()
        for job in jobs:
            job.waits_since = now
        if first:
            queue.extendleft(reversed(jobs))
        else:
            queue.extend(jobs)
        self._news.set()

    def drain(self) -> list[Job]:
        """All that wait, who wait no longer."""
        jobs = self._waiting()
        for queue in self._queues.values():
            queue.clear()
        return jobs

    def _waiting(self) -> list[Job]:
        return [job for queue in self._queues.values() for job in queue]

    async def wait_for(self, seconds: float) -> None:
        """Return when a job that somebody wants has waited so long."""
        while True:
            # Not only the first of each queue: it may have been put back before the others just now.
            while not (waiting := [job.waits_since for job in self._waiting() if not job.done.done()]):
                self._news.clear()
                await self._news.wait()
            if (left := min(waiting) + seconds - time.monotonic()) <= 0:
                return
            await asyncio.sleep(left)

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[list[Job]]:
        """The next jobs for one process: several only where all may be scored together."""
        while not (jobs := self._next()):
            self._news.clear()
            await self._news.wait()
        above = jobs[0].level > self._lowest
        self._taken += 1
        self._above += above
        try:
            yield jobs
        finally:
            self._taken -= 1
            self._above -= above
            self._news.set()

    def _next(self) -> list[Job]:
        self._turns += 1
        if self._lowest == 0 and len(self._queues) > 1:
            self._skip_first_slice()
        for level in sorted(self._queues, key=self._rank):
            if level > self._lowest and self._above >= self._most_above:
                continue
            if jobs := _some(self._queues[level], _TOGETHER if level == 0 else 1):
                return jobs
        return []

    def _rank(self, level: int) -> tuple[bool, int]:
        """The lower goes first; cheapest first, unless it is the turn of one that has waited long."""
        queue = self._queues[level]
        due = self._turns % _EVERY == 0 and level > self._lowest and bool(queue)
        return not (due and time.monotonic() - queue[0].waits_since > _PATIENCE_S), level

    def _skip_first_slice(self) -> None:
        queue = self._queues[0]
        while queue and self._habits.expensive(queue[0]):
            job = queue.popleft()
            job.level = 1
            self._queues[1].append(job)


def _some(queue: deque[Job], most: int) -> list[Job]:
    taken: list[Job] = []
    while queue and len(taken) < most:
        if queue[0].done.done():
            queue.popleft()
        elif not taken or (taken[0].together and queue[0].together):
            taken.append(queue.popleft())
        else:
            break
    return taken
