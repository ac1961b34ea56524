"""Scoring jobs on workers, by the processor time that they have cost.

Every job begins in the fast lane with a short slice of processor time. What does not end within it moves
to the slow lane, which has a worker of its own at low priority, and starts again with a longer slice, then
with its whole budget; the shorter is served first. So a text that is expensive to score costs the others
one short slice each, however many come at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import re
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sandbox_rl.errors import ConfigError, SandboxFault
from sandbox_rl.rewards.places import Place, WorkerHandle
from sandbox_rl.rewards.worker import CONFIG, EXITED, JOB, REPORT

__all__ = ["Lanes", "Outcome"]

logger = logging.getLogger(__name__)

_START_S = 120.0
"""Seconds that starting a worker may take."""

_SLACK_S = 10.0
"""Seconds beyond its own limit after which a worker that has not reported is lost."""

_VERDICT_BYTES = 1 << 16
_TOGETHER = 16
"""Answers that one process scores at most, of scorers that are known not to evaluate text."""

_SLICES = (0.02, 0.3)
"""Processor seconds of the fast lane and of the first turn in the slow lane."""

_WALL = 20.0
"""Wall time per processor time at most, for a machine that is busy. A worker bounds what waits by itself."""

_KINDS = ("value", "bad_gold", "error")
_PART = re.compile(r"[\w .:/%+-]{1,64}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one job ended.

    `kind`: "value"; "bad_gold" and "error" as the process says; "late" (its time was over); "died" (its
    process ended without a verdict); "broken" (twice its worker was lost); "down" (no worker can be had).
    """

    kind: Literal["value", "bad_gold", "error", "late", "died", "broken", "down"]
    value: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    read: Any = None
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Job:
    item: bytes
    together: bool
    done: asyncio.Future[Outcome]
    level: int = 0
    lost: int = 0


class _Lane:
    """Jobs that wait, by level, and news of them.

    Args:
        together: jobs that one process may be given. What is known to be expensive gets its own.
    """

    def __init__(self, levels: Sequence[int], together: int) -> None:
        self._together = together
        self.waiting = {level: deque[_Job]() for level in levels}
        self.news = asyncio.Event()

    def put(self, jobs: Sequence[_Job], *, first: bool = False) -> None:
        for job in reversed(jobs) if first else jobs:
            queue = self.waiting[job.level]
            (queue.appendleft if first else queue.append)(job)
        self.news.set()

    async def take(self) -> list[_Job]:
        """The next jobs for one process: several only where all may be scored together."""
        while True:
            for queue in self.waiting.values():
                taken: list[_Job] = []
                while queue and len(taken) < self._together:
                    if queue[0].done.done():
                        queue.popleft()
                    elif not taken or (taken[0].together and queue[0].together):
                        taken.append(queue.popleft())
                    else:
                        break
                if taken:
                    return taken
            self.news.clear()
            await self.news.wait()


class _Worker:
    """A started worker with its standing connection."""

    def __init__(self, handle: WorkerHandle) -> None:
        self.handle = handle
        self.numbers = itertools.count(1)
        self.reads: tuple[str, ...] = ()

    async def configure(self, config: Mapping[str, Any]) -> None:
        """Tell it what to load and wait until it has.

        Raises:
            ConfigError: a scorer cannot be loaded there.
            SandboxFault: it ended.
        """
        loop, connection = asyncio.get_running_loop(), self.handle.socket
        data = json.dumps(config).encode()
        try:
            async with asyncio.timeout(_START_S):
                await loop.sock_sendall(connection, CONFIG.pack(len(data)) + data)
                (length,) = CONFIG.unpack(await _exactly(connection, CONFIG.size))
                answer = json.loads(await _exactly(connection, length))
        except (OSError, TimeoutError, EOFError) as error:
            await asyncio.sleep(0.05)  # what it said may be on the way
            why = self.handle.complaint or f"{type(error).__name__}: {error}"
            raise SandboxFault(f"a scoring worker does not start: {why}") from error
        if "error" in answer:
            raise ConfigError(f"reward: a scoring worker cannot load its scorers: {answer['error']}")
        self.reads = tuple(answer["reads"])


class Lanes:
    """Runs jobs; made and used in one event loop.

    Args:
        config: of every worker, see `worker.main`.
        timeout: processor seconds of one job.
    """

    def __init__(
        self, place: Place, config: Mapping[str, Any], *, workers: int, timeout: float, memory_mb: int
    ) -> None:
        self._place = place
        self._config = config
        self._workers = workers
        self._memory_mb = memory_mb
        self._budgets = (*(s for s in _SLICES if s < timeout), timeout)
        last = len(self._budgets) - 1
        self._fast = _Lane([0], _TOGETHER)
        self._slow = _Lane(range(1, last + 1), 1) if last else self._fast
        self._tasks: list[asyncio.Task[None]] = []
        self._slow_task: asyncio.Task[None] | None = None
        self.reads: tuple[str, ...] = ()
        self.stopped = False
        self._started: list[_Worker] = []

    async def start(self) -> None:
        """Start the workers of the fast lane.

        Raises:
            ConfigError, SandboxFault: one does not start.
        """
        starts = (self._start(0) for _ in range(self._workers))
        results = await asyncio.gather(*starts, return_exceptions=True)
        workers = [result for result in results if isinstance(result, _Worker)]
        for result in results:
            if isinstance(result, BaseException):
                await self.stop()
                raise result
        self.reads = workers[0].reads
        self._tasks = [asyncio.create_task(self._serve(self._fast, worker)) for worker in workers]

    async def stop(self) -> None:
        """End the workers; jobs that wait end as "down"."""
        self.stopped = True
        tasks = [*self._tasks, *([self._slow_task] if self._slow_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._started:  # a task that was cancelled before its first step has ended none
            worker.handle.kill()
        for queue in (*self._fast.waiting.values(), *self._slow.waiting.values()):
            for job in queue:
                _settle(job, Outcome("down", detail="scoring was stopped"))

    async def run(self, item: Mapping[str, Any], *, together: bool = False) -> Outcome:
        """What became of one item.

        Args:
            together: its scorers are known not to evaluate text, so that a process may score several.
        """
        try:
            data = json.dumps(item).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return Outcome("bad_gold", detail=f"the task is not made of JSON values: {error}")
        if self.stopped:
            return Outcome("down", detail="scoring was stopped")
        job = _Job(data, together, asyncio.get_running_loop().create_future())
        self._fast.put([job])
        return await job.done

    async def _start(self, nice: int) -> _Worker:
        worker = _Worker(await self._place.start())
        try:
            await worker.configure({**self._config, "nice": nice, "filter": self._place.filter.hex()})
        except BaseException:
            worker.handle.kill()
            raise
        self._started = [*(w for w in self._started if w.handle.socket.fileno() >= 0), worker]
        return worker

    async def _serve(self, lane: _Lane, worker: _Worker | None) -> None:
        """Jobs of a lane on one worker after another, for ever."""
        jobs: list[_Job] = []
        try:
            while True:
                jobs = await lane.take()
                if worker is not None and jobs[0].lost:
                    # Only a worker that has just started tells whether the job ends it.
                    worker.handle.kill()
                    worker = None
                try:
                    worker = worker or await self._start(0 if lane is self._fast else 10)
                except (ConfigError, SandboxFault) as error:
                    for job in jobs:
                        _settle(job, Outcome("down", detail=str(error)))
                    await asyncio.sleep(0.1)
                    continue
                if not await self._work(worker, jobs):
                    worker.handle.kill()
                    worker = None
        finally:
            if worker is not None:
                worker.handle.kill()
            for job in jobs:
                _settle(job, Outcome("down", detail="scoring was stopped"))

    async def _work(self, worker: _Worker, jobs: list[_Job]) -> bool:
        """Have these jobs done by one process; False when the worker is lost."""
        budget = self._budgets[jobs[0].level]
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                each = budget if len(jobs) > 1 else 0.0
                cpu = budget * len(jobs)
                header = JOB.pack(next(worker.numbers), cpu, _WALL * cpu + 1.0, self._memory_mb, each)
                try:
                    socket.send_fds(worker.handle.socket, [header], [theirs.fileno()])
                except OSError:
                    self._lost(jobs)
                    return False
            items = b"[" + b",".join(job.item for job in jobs) + b"]"
            talk = asyncio.create_task(_converse(ours, items, jobs))
            try:
                async with asyncio.timeout(_WALL * cpu + _SLACK_S):
                    report = REPORT.unpack(await _exactly(worker.handle.socket, REPORT.size))
            except (OSError, TimeoutError, EOFError):
                await _ended(talk)
                self._lost(jobs)
                return False
            except BaseException:
                talk.cancel()
                raise
            await _ended(talk)
            self._after(jobs, report[1], report[2], report[3])
            return True
        finally:
            ours.close()

    def _after(self, jobs: list[_Job], how: int, code: int, seconds: float) -> None:
        """What becomes of the jobs that a process has left without a verdict: the first of them ended it."""
        left = [job for job in jobs if not job.done.done()]
        if not left:
            return
        first, others = left[0], left[1:]
        timed_out = how != EXITED or code in (-27, -24)  # SIGPROF, SIGXCPU
        if len(jobs) > 1 and not timed_out:
            # It is about to evaluate text, or failed where the answers before it may be to blame (memory).
            first.together = False
            self._fast.put(left, first=True)
            return
        if not timed_out and code == 0:
            _settle(first, Outcome("died", detail="its process gave no valid verdict"))
        elif not timed_out:
            _settle(first, Outcome("died", detail=f"its process died (exit code {code})"))
        elif first.level + 1 < len(self._budgets):
            first.level += 1
            self._to_slow(first)
        else:
            _settle(first, Outcome("late", detail=f"killed after {seconds:.3g} s of processor time"))
        if others:
            self._fast.put(others, first=True)

    def _to_slow(self, job: _Job) -> None:
        self._slow.put([job])
        if self._slow_task is None:
            self._slow_task = asyncio.create_task(self._serve(self._slow, None))

    def _lost(self, jobs: list[_Job]) -> None:
        """The worker is gone. Once that can come from outside; what loses a second one did it itself."""
        for job in jobs:
            if job.done.done():
                continue
            job.lost += 1
            job.together = False
            if job.lost > 1:
                _settle(job, Outcome("broken", detail="its scoring worker died twice"))
            else:
                (self._slow if job.level else self._fast).put([job], first=True)


async def _converse(connection: socket.socket, items: bytes, jobs: Sequence[_Job]) -> None:
    """Send the items of a process and settle a job for each valid verdict, in order."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        sending = asyncio.create_task(_send(connection, items))
        try:
            data = b""
            for job in jobs:
                while b"\n" not in data:
                    more = await loop.sock_recv(connection, _VERDICT_BYTES)
                    if not more or len(data) + len(more) > 2 * _VERDICT_BYTES:
                        return
                    data += more
                line, _, data = data.partition(b"\n")
                if (outcome := _verdict(line)) is None:
                    return
                _settle(job, outcome)
        finally:
            sending.cancel()


async def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the process may have ended
        await asyncio.get_running_loop().sock_sendall(connection, data)
        connection.shutdown(socket.SHUT_WR)


async def _ended(talk: asyncio.Task[None]) -> None:
    """Its process is gone, so what it wrote is all there."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await talk


def _verdict(line: bytes) -> Outcome | None:
    """A verdict as an outcome; None if it is not one. Nothing here trusts the process."""
    if len(line) > _VERDICT_BYTES:
        return None
    try:
        said = json.loads(line, parse_constant=_no_constant)
        kind, value, parts = said["kind"], said.get("value", 0.0), said.get("parts", {})
        detail = "".join(c if c.isprintable() else "?" for c in str(said.get("detail", ""))[:300])
        if kind not in _KINDS or type(value) not in (int, float) or not 0 <= value <= 1:
            return None
        if len(parts) > 64 or not all(_PART.fullmatch(key) for key in parts):
            return None
        numbers = {key: float(part) for key, part in parts.items() if type(part) in (int, float)}
        if len(numbers) != len(parts) or not all(map(math.isfinite, numbers.values())):
            return None
        return Outcome(kind, float(value), numbers, detail, said.get("read"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _settle(job: _Job, outcome: Outcome) -> None:
    if not job.done.done():
        job.done.set_result(outcome)


async def _exactly(connection: socket.socket, length: int) -> bytes:
    """That many bytes.

    Raises:
        EOFError: the other side has ended.
    """
    data = b""
    while len(data) < length:
        more = await asyncio.get_running_loop().sock_recv(connection, length - len(data))
        if not more:
            raise EOFError("it ended")
        data += more
    return data
