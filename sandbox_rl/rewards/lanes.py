"""Scoring jobs on workers, by the processor time that they have cost.

Every job begins with a short slice of processor time. What does not end within it starts again with a longer
one, after those that have cost less; what needs more than `_FAST` slices moves to the slow lane. That lane
has one worker, which gets a tenth of a processor while cheaper jobs are there. So a text that is expensive
to score costs the others two short slices, however many come at once.

The workers themselves stop and continue what they run (`worker`): priorities do not reach across sandboxes,
since Linux shares processors among sessions and control groups first.

A worker holds what its scorers import, so there are no more than are needed: the fast lane begins with one
and gets another when jobs wait for as long as one takes to start, the slow lane gets its own with its first.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sandbox_rl.errors import ConfigError, SandboxFault
from sandbox_rl.rewards.connection import Ending, Outcome, Worker, WorkerLost
from sandbox_rl.rewards.job_queue import Habits, Job, Lane
from sandbox_rl.rewards.places import Place

logger = logging.getLogger(__name__)

_SLICES = (0.01, 0.05, 0.3)
"""Processor seconds of the first turns; the next has the whole budget. An answer in mathematics takes
0.001 to 0.006."""

_FAST = 2
"""Slices in the fast lane."""

_STARTS_S = 1.0
"""Seconds that a worker takes to start where its scorers are those of `reasoning_gym`."""


class Lanes:
    """Runs jobs; made and used in one event loop.

    Args:
        config: of every worker, see `worker.main`.
        workers: of the fast lane, at most.
        timeout: processor seconds of one job.
        memory_mb: what one process may take.

    Attributes:
        reads: names of the scorers that read answers by themselves (`base.reads_with`).
        stopped: whether no job is taken any more.
    """

    def __init__(
        self, place: Place, config: Mapping[str, Any], *, workers: int, timeout: float, memory_mb: int
    ) -> None:
        self._place = place
        self._config = config
        self._workers = workers
        self._memory_mb = memory_mb
        self._budgets = (*(s for s in _SLICES if s < timeout), timeout)
        levels = range(len(self._budgets))
        self._habits = Habits()
        self._fast = Lane(levels[:_FAST], workers, self._habits)
        self._slow = Lane(levels[_FAST:] or range(_FAST, _FAST + 1), 1, self._habits)
        self._tasks: list[asyncio.Task[None]] = []
        self._started: set[Worker] = set()
        self._slow_worker: Worker | None = None
        self.reads: tuple[str, ...] = ()
        self.stopped = False

    async def start(self) -> None:
        """Start the first worker of the fast lane; the others follow by themselves.

        Raises:
            ConfigError, SandboxFault: it does not start.
        """
        worker = await self._start()
        self.reads = worker.reads
        serving = [self._serve(self._fast, worker)]
        serving += [self._serve(self._fast, None) for _ in range(1, self._workers)]
        if len(self._budgets) > _FAST:
            serving.append(self._serve(self._slow, None))
        self._tasks = [asyncio.create_task(served) for served in serving]

    async def stop(self) -> None:
        """End the workers; jobs that wait end as "down"."""
        self.stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in tuple(self._started):
            self._kill(worker)
        _down((*self._fast.drain(), *self._slow.drain()), "scoring was stopped")

    async def run(self, item: Mapping[str, Any], *, together: bool = False, dataset: str = "") -> Outcome:
        """What became of one item.

        Args:
            together: its scorers are known not to evaluate text, so that a process may score several.
            dataset: whose verifier scores it, so that a worker loads that once.
        """
        try:
            data = json.dumps(item).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return Outcome("bad_gold", detail=f"the task is not made of JSON values: {error}")
        if self.stopped:
            return Outcome("down", detail="scoring was stopped")
        scorer = " ".join((*(str(name) for name, _ in item["scorers"]), dataset))
        job = Job(data, scorer, together, asyncio.get_running_loop().create_future(), dataset=dataset)
        self._put([job])
        return await job.done

    def _put(self, jobs: Sequence[Job], *, first: bool = False) -> None:
        (self._fast if jobs[0].level < _FAST else self._slow).put(jobs, first=first)
        self._pace()

    def _pace(self) -> None:
        """The slow lane has a whole processor only while nothing cheaper is there."""
        if self._slow_worker is not None:
            self._slow_worker.slow(self._fast.busy)

    async def _start(self) -> Worker:
        try:
            worker = await Worker.start(self._place, self._config, self._memory_mb)
        except OSError as error:
            raise SandboxFault(f"a scoring worker cannot be started: {error}") from error
        self._started.add(worker)
        return worker

    def _kill(self, worker: Worker) -> None:
        self._started.discard(worker)
        worker.kill()

    async def _serve(self, lane: Lane, worker: Worker | None) -> None:
        """Jobs of a lane on one worker after another, for ever."""
        if worker is None:
            worker = await self._when_needed(lane)
        while True:
            if lane is self._slow:
                self._slow_worker = worker
            left_to_others = False
            async with lane.take() as jobs:
                self._pace()
                try:
                    worker = await self._turn(worker, jobs)
                except asyncio.CancelledError:
                    _down(jobs, "scoring was stopped")
                    raise
                except (ConfigError, SandboxFault):
                    left_to_others = True
                    self._put(jobs, first=True)
            self._pace()
            if left_to_others:
                worker = await self._when_needed(lane)

    async def _when_needed(self, lane: Lane) -> Worker | None:
        """A worker once jobs have waited for one; None if that of the slow lane does not start.

        Without a further worker the fast lane's jobs still have the others, so that is told to none of them.
        """
        told = False
        while True:
            await lane.wait_for(0.0 if lane is self._slow else _STARTS_S)
            try:
                return await self._start()
            except (ConfigError, SandboxFault) as error:
                if lane is self._slow:
                    return None  # said to the first job
                if not told:
                    logger.warning("answers are left to fewer scoring workers, no other starts: %s", error)
                told = True
            await asyncio.sleep(_STARTS_S)

    async def _turn(self, worker: Worker | None, jobs: list[Job]) -> Worker | None:
        """Have these jobs done by one process; returns the worker, None when it is lost.

        Raises:
            ConfigError, SandboxFault: no worker starts, but others can do these jobs.
        """
        if worker is not None and jobs[0].lost:
            # Only a worker that has just started tells whether the job ends it.
            self._kill(worker)
            worker = None
        if worker is None:
            try:
                worker = await self._start()
            except (ConfigError, SandboxFault) as error:
                if self._others_serve(jobs[0]):
                    raise
                _down(jobs, error)
                await asyncio.sleep(0.1)
                return None
            if jobs[0].level >= _FAST:
                self._slow_worker = worker
                self._pace()
        for job in jobs:
            worker.prepare(job.dataset)
        try:
            ending = await worker.score(
                [job.item for job in jobs],
                self._budgets[jobs[0].level],
                lambda index, outcome: jobs[index].settle(outcome),
            )
        except WorkerLost:
            self._kill(worker)
            self._lost(jobs)
            return None
        except OSError as error:  # the worker is well, but this process can hold no more descriptors
            _down(jobs, f"an answer cannot be handed to a scoring worker: {error}")
            await asyncio.sleep(0.1)
            return worker
        self._after(jobs, ending)
        return worker

    def _others_serve(self, job: Job) -> bool:
        """Whether a job for which no worker starts can be left to another; a lost one needs a new worker."""
        return job.level < _FAST and not job.lost and bool(self._started - {self._slow_worker})

    def _after(self, jobs: list[Job], ending: Ending) -> None:
        """What becomes of the jobs that a process has left without a verdict: the first of them ended it."""
        left = [job for job in jobs if not job.done.done()]
        self._learn(jobs, left, ending)
        if not left:
            return
        first, others = left[0], left[1:]
        if len(jobs) > 1 and not ending.out_of_time:
            # It is about to evaluate text, or failed where the answers before it may be to blame (memory).
            first.together = False
            self._put(left, first=True)
            return
        if not ending.out_of_time and ending.code == 0:
            first.settle(Outcome("died", detail="its process gave no valid verdict"))
        elif not ending.out_of_time:
            first.settle(Outcome("died", detail=f"its process died (exit code {ending.code})"))
        elif first.level + 1 < len(self._budgets):
            first.level += 1
            self._put([first])
        else:
            first.settle(Outcome("late", detail=f"killed after {ending.seconds:.3g} s of processor time"))
        if others:
            self._put(others, first=True)

    def _learn(self, jobs: list[Job], left: list[Job], ending: Ending) -> None:
        """Note which of these jobs used up the first slice; the others in `left` have not been begun."""
        for job in jobs:
            if job in left[1:]:
                continue
            slow = ending.out_of_time if job in left else job.level > 0 and ending.seconds >= self._budgets[0]
            if job.level == 0 or not slow:  # one answer counts once, however many slices it uses up
                self._habits.used(job, first_slice_up=slow)

    def _lost(self, jobs: list[Job]) -> None:
        """The worker is gone. Once that can come from outside; what loses a second one did it itself."""
        for job in jobs:
            if job.done.done():
                continue
            job.lost += 1
            job.together = False
            if job.lost > 1:
                job.settle(Outcome("broken", detail="its scoring worker died twice"))
            else:
                self._put([job], first=True)


def _down(jobs: Iterable[Job], why: object) -> None:
    for job in jobs:
        job.settle(Outcome("down", detail=str(why)))
