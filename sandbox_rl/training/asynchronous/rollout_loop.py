"""The other end of `RolloutProcess`: groups of episodes, those that the trainer admits, until told to stop.

It uses sandboxes and servers, parses and scores. It sees no GPU and dies with the trainer.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeVar

from sandbox_rl.audit.faults import FaultWatch
from sandbox_rl.errors import InfraFault
from sandbox_rl.journal import Journal, JournalObserver
from sandbox_rl.metrics import group_metrics, rollout_metrics
from sandbox_rl.policies.base import WeightVersion
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.rollout.order import of_group
from sandbox_rl.training.groups import Advantage, group_requests
from sandbox_rl.training.samples import FinishedGroup, failed_group, finished_group
from sandbox_rl.types import Rollout, Task

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
FAILED_GROUPS = 8
"""Groups in a row of which every episode failed on our side, after which it is no accident."""
HEARTBEAT_S = 1.0
ROLLOUT_PROCESS = 9_000
"""Number of the rollouts' process in the journal, beside the trainer's ranks."""
POLL_S = 0.05
"""Between two looks for admitted groups, where another could start."""


@dataclass(frozen=True, slots=True)
class RolloutJob:
    """What the process needs; it crosses the border between processes.

    Args:
        build: the version of the served weights → an engine, and the tasks of the run.
        seed: of the run.
        at_once: groups that run side by side.
        leave_out_equal: whether groups whose rewards are all equal are not trained on.
        max_fault_share: of episodes that could not be judged, above which the run ends.
        attempt: how often this run was resumed; part of the episodes' ids, since an episode that was lost
            with a process is sampled again.
    """

    build: Callable[[WeightVersion], tuple[RolloutEngine, Sequence[Task]]]
    seed: int
    at_once: int
    group_size: int
    advantage: Advantage
    leave_out_equal: bool
    max_fault_share: float
    journal: Path
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Channels:
    """What connects the two ends: queues, values and an event of multiprocessing.

    Args:
        admitted: lists of the numbers of groups that may start, from the trainer.
        finished: a `FinishedGroup` for each of them; bounded by what is admitted.
        metrics: dicts of a group's metrics.
        failure: if the process ended and did not have to: whether by a fault and no defect, and why.
        version: of the weights that turns are sampled with; whoever publishes writes it.
        beat: when the loop last moved, on the monotonic clock.
        stop: set when it should end.
    """

    admitted: Queue[list[int]]
    finished: Queue[FinishedGroup]
    metrics: Queue[dict[str, float]]
    failure: Queue[tuple[bool, str]]
    version: WeightVersion
    beat: Synchronized[float]
    stop: Event


def roll_out(job: RolloutJob, channels: Channels) -> None:
    """The whole life of the process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        asyncio.run(_roll_out(job, channels))
    except InfraFault as error:
        channels.failure.put((True, str(error)))  # the trainer says it; a traceback would look like a defect
    except BaseException as error:
        channels.failure.put((False, f"{type(error).__name__}: {error}"))
        raise


async def _roll_out(job: RolloutJob, channels: Channels) -> None:
    engine, tasks = job.build(channels.version)
    with Journal(job.journal, start=job.attempt, process=ROLLOUT_PROCESS) as journal:
        async with engine:
            groups = _Groups(job, channels, engine, tasks, journal)
            live: set[asyncio.Task[None]] = set()
            admitted: deque[int] = deque()
            try:
                while not channels.stop.is_set():
                    channels.beat.value = time.monotonic()
                    for numbers in taken(channels.admitted):
                        admitted.extend(numbers)
                    while admitted and len(live) < job.at_once:
                        groups.faults.started(admitted[0])
                        live.add(asyncio.create_task(groups.roll_out(admitted.popleft())))
                    if not live:
                        await asyncio.sleep(POLL_S)
                        continue
                    ended, live = await asyncio.wait(
                        live,
                        timeout=POLL_S if len(live) < job.at_once else HEARTBEAT_S,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for error in [task.exception() for task in ended]:  # all are looked at, one is told
                        if error is not None:
                            raise error
            finally:
                for task in live:
                    task.cancel()
                await asyncio.gather(*live, return_exceptions=True)


@dataclass(eq=False)
class _Groups:
    """Rolls out groups, one call each, and hands on what became of them."""

    job: RolloutJob
    channels: Channels
    engine: RolloutEngine
    tasks: Sequence[Task]
    journal: Journal

    def __post_init__(self) -> None:
        self._observer = JournalObserver(
            self.journal, lambda _: {"phase": "train", "step": self.channels.version.value}
        )
        self._failed_in_a_row = 0
        self.faults = _FaultsInOrder(FaultWatch(self.job.max_fault_share))

    async def roll_out(self, number: int) -> None:
        """One group, from its requests to the trainer's queue.

        Raises:
            InfraFault: too much fails for an accident.
        """
        job, channels = self.job, self.channels
        task = of_group(self.tasks, number, seed=job.seed)
        requests = group_requests(task, number, seed=job.seed, size=job.group_size, again=job.attempt)
        try:
            rollouts = await self.engine.run(requests, observer=self._observer)
        except InfraFault as fault:
            self.faults.ended(number, [str(fault)] * job.group_size)
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILED_GROUPS:
                raise
            ids = [request.id for request in requests]
            channels.finished.put(failed_group(number, task.id, ids, str(fault)))
            return
        self._failed_in_a_row = 0
        self.faults.ended(number, rollouts)
        occupancy = self.engine.occupancy.take()
        channels.metrics.put(rollout_metrics(rollouts) | group_metrics([rollouts]) | occupancy)
        channels.finished.put(
            finished_group(rollouts, number=number, kind=job.advantage, leave_out_equal=job.leave_out_equal)
        )


class _FaultsInOrder:
    """Adds groups in the order in which they started: faults may end sooner than honest work."""

    def __init__(self, watch: FaultWatch) -> None:
        self._watch = watch
        self._order: deque[int] = deque()
        self._ended: dict[int, Sequence[Rollout | str]] = {}

    def started(self, number: int) -> None:
        self._order.append(number)

    def ended(self, number: int, episodes: Sequence[Rollout | str]) -> None:
        """Take note of a group: its rollouts, or why each of them failed.

        Raises:
            InfraFault: too many could not be judged.
        """
        self._ended[number] = episodes
        while self._order and self._order[0] in self._ended:
            for episode in self._ended.pop(self._order.popleft()):
                self._watch.add(episode)
        if cause := self._watch.cause():
            raise InfraFault(cause)


def groups_at_once(concurrency: int, group_size: int) -> int:
    """Groups that run side by side, at least one."""
    return max(1, concurrency // group_size)


def taken(source: Queue[T]) -> Iterator[T]:
    """All that has come to a queue and was not taken yet."""
    with suppress(queue.Empty):
        while True:
            yield source.get_nowait()
