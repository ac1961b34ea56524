"""Rollouts in a process of their own, for training that does not wait for them.

The trainer's end, with what TRL calls of its `RolloutWorkerProtocol`.
"""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue

from sandbox_rl.errors import EngineFault, InfraFault
from sandbox_rl.policies.base import WeightVersion
from sandbox_rl.training.asynchronous.rollout_loop import Channels, RolloutJob, roll_out, taken
from sandbox_rl.training.samples import FinishedGroup

STOP_TIMEOUT_S = 60.0


class RolloutProcess:
    """The trainer's end: queues, and whether the other end still works.

    Args:
        version: of the served weights, in memory that both ends read.
    """

    def __init__(self, job: RolloutJob, version: WeightVersion) -> None:
        self._job = job
        self._context = multiprocessing.get_context("spawn")
        self._channels = Channels(
            admitted=self._context.Queue(),
            finished=self._context.Queue(),
            metrics=self._context.Queue(),
            failure=self._context.Queue(),
            version=version,
            beat=self._context.Value("d", 0.0),
            stop=self._context.Event(),
        )
        self._process: SpawnProcess | None = None

    @property
    def rollout_buffer(self) -> Queue[FinishedGroup]:
        """Where the trainer takes each `FinishedGroup` from."""
        return self._channels.finished

    @property
    def metrics_queue(self) -> Queue[dict[str, float]]:
        """Where the trainer takes the rollouts' metrics from."""
        return self._channels.metrics

    def start(self) -> None:
        """Begin to roll out. Called once, when the servers hold the first weights."""
        self._channels.beat.value = time.monotonic()
        self._process = self._context.Process(
            target=roll_out,
            args=(self._job, self._channels),
            name="rollouts",
            daemon=False,  # it has children itself: scorers
        )
        self._process.start()

    def stop(self) -> None:
        """End it; its sandboxes go with it."""
        process, self._process = self._process, None
        if process is None:
            return
        self._channels.stop.set()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while process.is_alive() and time.monotonic() < deadline:
            for _ in (*taken(self.rollout_buffer), *taken(self.metrics_queue)):
                pass  # a full pipe would keep its feeder thread, and so the process
            process.join(0.1)
        if process.is_alive():
            process.kill()
            process.join(STOP_TIMEOUT_S)

    def hand_over(self, group: FinishedGroup) -> None:
        """A group that need not be sampled; it arrives as others do."""
        self._channels.finished.put(group)

    def admit(self, numbers: Sequence[int]) -> None:
        """Let groups start, as soon as another can run."""
        if numbers:
            self._channels.admitted.put(list(numbers))

    def check_health(self, stale_after_s: float) -> None:
        """Asked by TRL while it waits.

        Raises:
            InfraFault: it ended because too many episodes failed on our side.
            EngineFault: the process is gone, or its loop hangs.
        """
        if self._process is None or not self._process.is_alive():
            code = None if self._process is None else self._process.exitcode
            try:
                known, why = self._channels.failure.get(timeout=1.0)
            except queue.Empty:
                known, why = False, f"exit code {code}"
            if known:
                raise InfraFault(f"{why}; go on with --resume once that works")
            raise EngineFault(f"the rollout process ended: {why}; go on with --resume")
        silent = time.monotonic() - self._channels.beat.value
        if silent > stale_after_s:
            raise EngineFault(f"the rollout process has not moved for {silent:.0f} s; go on with --resume")
