"""The trainer's side of a scoring worker: its start, one process at a time, and the check of its verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sandbox_rl.errors import ConfigError, SandboxFault
from sandbox_rl.rewards.places import Place, WorkerHandle
from sandbox_rl.rewards.worker import (
    CONFIG,
    EXITED,
    FULL_SPEED,
    JOB,
    JOB_FOLLOWS,
    PREPARE,
    REPORT,
    SLOWED,
    WARM_S,
)

_START_S = 120.0
"""Seconds that starting a worker may take."""

_SLACK_S = 10.0
"""Seconds beyond its own limit after which a worker that has not reported is lost."""

_WALL = 20.0
"""Wall time per processor time at most, for a machine that is busy. A worker bounds what waits by itself."""

_SLOWED = 10.0
"""How much longer it takes while the worker leaves the processors to others, at most."""

_VERDICT_BYTES = 1 << 16
_KINDS = ("value", "bad_gold", "error")
_PART = re.compile(r"[\w .:/%+-]{1,64}")


class WorkerLost(Exception):
    """A worker ended or does not report."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one job ended.

    `kind`: "value"; "bad_gold" and "error" as the process says; "unread" (an error as a scorer read the
    answer by itself); "late" (its time was over); "died" (its process ended without a verdict); "broken"
    (twice its worker was lost); "down" (no worker is available).
    """

    kind: Literal["value", "bad_gold", "error", "unread", "late", "died", "broken", "down"]
    value: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    read: Any = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    Args:
        out_of_time: its processor seconds, or its wall time, were over.
        code: exit code, negative for a signal.
        seconds: of processor time that it took.
    """

    out_of_time: bool
    code: int
    seconds: float


class Worker:
    """A started worker with its standing connection.

    Attributes:
        reads: names of its scorers that read answers by themselves (`base.reads_with`).
    """

    def __init__(self, handle: WorkerHandle, memory_mb: int) -> None:
        self.reads: tuple[str, ...] = ()
        self._handle = handle
        self._memory_mb = memory_mb
        self._numbers = itertools.count(1)
        self._slowed = False
        self._prepared: set[str] = set()

    @classmethod
    async def start(cls, place: Place, config: Mapping[str, Any], memory_mb: int) -> Worker:
        """A worker that has loaded its scorers.

        Args:
            config: see `worker.main`.
            memory_mb: what each of its processes may take.

        Raises:
            ConfigError: a scorer cannot be loaded there.
            SandboxFault: it ended or cannot be made.
        """
        worker = cls(await place.start(), memory_mb)
        try:
            await worker._configure({**config, "filter": place.filter.hex()})
        except BaseException:
            worker.kill()
            raise
        return worker

    async def _configure(self, config: Mapping[str, Any]) -> None:
        connection = self._handle.socket
        data = json.dumps(config).encode()
        try:
            async with asyncio.timeout(_START_S):
                await asyncio.get_running_loop().sock_sendall(connection, CONFIG.pack(len(data)) + data)
                (length,) = CONFIG.unpack(await _exactly(connection, CONFIG.size))
                answer = json.loads(await _exactly(connection, length))
        except (OSError, TimeoutError, EOFError) as error:
            await asyncio.sleep(0.05)  # what it said may be on the way
            why = self._handle.complaint or f"{type(error).__name__}: {error}"
            raise SandboxFault(f"a scoring worker does not start: {why}") from error
        if "error" in answer:
            raise ConfigError(f"reward: a scoring worker cannot load its scorers: {answer['error']}")
        self.reads = tuple(answer["reads"])

    def kill(self) -> None:
        """End it and all its processes; idempotent."""
        self._handle.kill()

    def slow(self, slowed: bool) -> None:
        """Leave the processors to others, or not any longer; holds for processes to come as well."""
        if slowed != self._slowed:
            self._slowed = slowed
            with contextlib.suppress(OSError):  # a lost worker is noticed where it should report
                self._handle.socket.send(SLOWED if slowed else FULL_SPEED)

    def prepare(self, dataset: str) -> None:
        """Have it load what a data set's verifier needs, once; the next process finds it there."""
        name = dataset.encode("utf-8", "replace")[:255]
        if name and dataset not in self._prepared:
            self._prepared.add(dataset)
            with contextlib.suppress(OSError):
                self._handle.socket.send(PREPARE + bytes([len(name)]) + name)

    async def score(
        self, items: Sequence[bytes], budget: float, tell: Callable[[int, Outcome], None]
    ) -> Ending:
        """Have one new process score these items, in order.

        Args:
            items: each as JSON.
            budget: processor seconds of each.
            tell: is given each valid verdict with the index of its item, as it comes.

        Raises:
            WorkerLost: the worker is gone.
            OSError: this process can hold no more descriptors; the worker has been told nothing.
        """
        cpu, connection = budget * len(items) + WARM_S, self._handle.socket
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                each = budget if len(items) > 1 else 0.0
                header = JOB.pack(next(self._numbers), cpu, _WALL * cpu + 1.0, self._memory_mb, each)
                try:
                    socket.send_fds(connection, [JOB_FOLLOWS + header], [theirs.fileno()])
                except OSError as error:
                    raise WorkerLost from error
            data = b"[" + b",".join(items) + b"]"
            conversation = asyncio.create_task(_converse(ours, data, len(items), tell))
            try:
                async with asyncio.timeout(_SLOWED * _WALL * cpu + _SLACK_S):
                    _, how, code, seconds = REPORT.unpack(await _exactly(connection, REPORT.size))
            except (OSError, TimeoutError, EOFError) as error:
                await _ended(conversation)
                raise WorkerLost from error
            except BaseException:
                conversation.cancel()
                raise
            await _ended(conversation)
            return Ending(how != EXITED or code in (-27, -24), code, seconds)  # SIGPROF, SIGXCPU
        finally:
            ours.close()


async def _converse(
    connection: socket.socket, data: bytes, count: int, tell: Callable[[int, Outcome], None]
) -> None:
    """Send a process its items and tell each valid verdict; what is none ends it."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        sending = asyncio.create_task(_send(connection, data))
        try:
            received = b""
            for index in range(count):
                while b"\n" not in received:
                    more = await loop.sock_recv(connection, _VERDICT_BYTES)
                    if not more or len(received) + len(more) > 2 * _VERDICT_BYTES:
                        return
                    received += more
                line, _, received = received.partition(b"\n")
                if (outcome := _verdict(line)) is None:
                    return
                tell(index, outcome)
        finally:
            sending.cancel()


async def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the process may have ended
        await asyncio.get_running_loop().sock_sendall(connection, data)
        connection.shutdown(socket.SHUT_WR)


async def _ended(conversation: asyncio.Task[None]) -> None:
    """Its process is gone, so what it wrote is all there."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await conversation


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
