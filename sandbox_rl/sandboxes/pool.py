"""A pool in front of a backend: warm sandboxes, what the host has left, retries, a circuit breaker.

A sandbox is handed out once and destroyed after use; what is reused is only the waiting. The pool
itself fulfils `SandboxBackend`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.errors import SandboxDead, SandboxFault, SandboxFileError
from sandbox_rl.sandboxes.base import INPUT_DIR, Sandbox, SandboxBackend, SandboxInfo, SandboxLimits
from sandbox_rl.sandboxes.config import PoolSettings
from sandbox_rl.sandboxes.names import check_files

POLL_S = 0.2
PROCESS_SHARE = 0.8  # of the processes that the kernel allows in all


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """Admission by the memory and the processes that the host has left.

    Limits are not reserved (most sandboxes use a fraction of theirs); one more is admitted while the
    free memory holds one whole sandbox beside the reserve.

    Args:
        limits: of one sandbox.
        reserve_mb: memory to leave to everything else, MiB.
        proc: where procfs is.
        cgroup: where the control groups are; in a container, the container's own.
    """

    limits: SandboxLimits
    reserve_mb: int
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")

    def free_mb(self) -> int:
        """Memory that is free beside the reserve, MiB: of the host, or of the container if that is less."""
        match = re.search(r"^MemAvailable:\s+(\d+) kB", _text(self.proc / "meminfo"), re.MULTILINE)
        host = int(match[1]) // 1024 if match else self.limits.memory_mb + self.reserve_mb
        return min([host, *self._of_container()]) - self.reserve_mb

    def _of_container(self) -> list[int]:
        """What the control group's limit leaves, not counting cached files, MiB; empty without a limit."""
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
        ):
            bound, used = _text(self.cgroup / limit).strip(), _text(self.cgroup / usage).strip()
            if bound.isdigit() and used.isdigit():
                stat = _text((self.cgroup / limit).parent / "memory.stat")
                match = re.search(rf"^{cached} (\d+)", stat, re.MULTILINE)
                return [(int(bound) - int(used) + (int(match[1]) if match else 0)) >> 20]
        return []

    def lacking(self) -> str:
        """What is missing for one more sandbox; "" when nothing is."""
        free_mb, needed_mb = self.free_mb() + self.reserve_mb, self.limits.memory_mb + self.reserve_mb
        if free_mb < needed_mb:
            return f"{free_mb} MiB of memory are free, {needed_mb} needed"
        most = min(
            int(_text(self.proc / f"sys/kernel/{name}") or 1 << 22) for name in ("pid_max", "threads-max")
        )
        load = re.search(r"\d+/(\d+) ", _text(self.proc / "loadavg"))
        processes = int(load[1]) if load else 0
        if processes + self.limits.pids > PROCESS_SHARE * most:
            return f"{processes} processes run, {most} are allowed"
        return ""

    async def wait(self) -> None:
        """Until one more fits; the caller's deadline bounds it."""
        while self.lacking():  # noqa: ASYNC110 - the kernel tells nobody when memory is free again
            await asyncio.sleep(POLL_S)


def _text(path: Path) -> str:
    """Its content; "" if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


log = logging.getLogger(__name__)

_Context = AbstractAsyncContextManager[Sandbox]


class SandboxPool:
    """Hands out sandboxes of `backend`.

    A request waits while too many are live, while the host has no capacity, or while making them fails;
    only its own timeout ends the wait. After `breaker_failures` failures in a row one probe at a time
    finds out whether the backend is back, and nobody else tries meanwhile.

    Args:
        backend: not yet entered; the pool enters and leaves it.
        limits: of one sandbox, for the check of input files and of the host's capacity.
        capacity: what the host has left; replaceable for tests.
    """

    def __init__(
        self,
        backend: SandboxBackend,
        *,
        limits: SandboxLimits | None = None,
        settings: PoolSettings | None = None,
        capacity: HostCapacity | None = None,
    ) -> None:
        self._backend = backend
        self._limits = limits or SandboxLimits()
        self._settings = settings or PoolSettings()
        self._capacity = capacity or HostCapacity(self._limits, self._settings.reserve_mb)
        self._live = asyncio.Semaphore(self._settings.max_live)
        self._making = asyncio.Semaphore(self._settings.create_concurrency)
        self._warm: deque[tuple[_Context, Sandbox]] = deque()
        self._wanted = asyncio.Event()
        self._failures = 0
        self._last_fault = ""
        self._probing = asyncio.Lock()
        self._filler: asyncio.Task[None] | None = None

    @property
    def info(self) -> SandboxInfo:
        return self._backend.info

    @property
    def warm(self) -> int:
        return len(self._warm)

    @property
    def broken(self) -> bool:
        return self._failures >= self._settings.breaker_failures

    async def __aenter__(self) -> SandboxPool:
        await self._backend.__aenter__()
        for sentence in self._backend.info.lacks:
            log.warning("sandboxes (%s) lack: %s", self._backend.info.tier, sentence)
        self._wanted.set()
        self._filler = asyncio.create_task(self._keep_warm(), name="sandbox pool")
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._filler is not None:
                self._filler.cancel()
                await asyncio.wait([self._filler])
            while self._warm:
                context, _ = self._warm.popleft()
                await context.__aexit__(None, None, None)
        finally:
            await self._backend.__aexit__(*exc)

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[Sandbox]:
        """A fresh sandbox; see `SandboxBackend.sandbox`. `timeout` includes every wait."""
        check_files(files or {}, self._limits)
        deadline = time.monotonic() + timeout
        context: _Context | None = None
        live = False
        try:
            try:
                async with asyncio.timeout(timeout):
                    live = await self._live.acquire()
                    while context is None:
                        context, sandbox = self._take_warm() or await self._make_patiently(deadline)
                        try:
                            await _place(sandbox, files or {})
                        except SandboxDead:  # it died while it waited; no policy has touched it
                            await context.__aexit__(None, None, None)
                            context = None
            except TimeoutError as error:
                raise SandboxFault(f"no sandbox within {timeout:g} s{self._why()}") from error
            except SandboxFileError as error:
                raise SandboxFault(f"the files of a new sandbox cannot be placed: {error}") from error
            yield sandbox
        finally:
            try:
                if context is not None:
                    await context.__aexit__(None, None, None)
            finally:
                if live:
                    self._live.release()

    def _take_warm(self) -> tuple[_Context, Sandbox] | None:
        self._wanted.set()
        return self._warm.popleft() if self._warm else None

    async def _make_patiently(self, deadline: float) -> tuple[_Context, Sandbox]:
        """Make one, waiting for capacity, with back-off between attempts, until cancelled by the timeout."""
        wait = self._settings.backoff_s
        while True:
            try:
                if self.broken:
                    await self._probe(deadline)
                await self._capacity.wait()
                async with self._making:
                    return await self._make(deadline)
            except SandboxFault:
                await asyncio.sleep(wait)
                wait = min(2 * wait, self._settings.longest_backoff_s)

    async def _make(self, deadline: float) -> tuple[_Context, Sandbox]:
        """One attempt, counted by the breaker."""
        context = self._backend.sandbox(timeout=max(0.001, deadline - time.monotonic()))
        try:
            sandbox = await context.__aenter__()
        except SandboxFault as fault:
            self._failures += 1
            self._last_fault = str(fault)
            raise
        self._failures = 0
        return context, sandbox

    async def _probe(self, deadline: float) -> None:
        """With the breaker open, one request tries; the others wait for what it finds."""
        async with self._probing:
            if not self.broken:
                return
            await asyncio.sleep(self._settings.probe_interval_s)
            context, _ = await self._make(deadline)
            await context.__aexit__(None, None, None)

    async def _keep_warm(self) -> None:
        """Make sandboxes ahead of need. Failures are left to the requests, which report them."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while len(self._warm) < self._settings.warm and not self.broken and not self._capacity.lacking():
                try:
                    async with self._making:
                        self._warm.append(await self._make(time.monotonic() + self._settings.warm_timeout_s))
                except SandboxFault:
                    # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with the event.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._settings.longest_backoff_s):
                            await self._wanted.wait()

    def _why(self) -> str:
        if self.broken:
            return f"; making them fails: {self._last_fault}"
        if self._live.locked():
            return f"; {self._settings.max_live} are live (sandbox pool: max_live)"
        lacking = self._capacity.lacking()
        return f"; {lacking}" if lacking else ""


async def _place(sandbox: Sandbox, files: Mapping[str, bytes]) -> None:
    """Files under `INPUT_DIR`: all at once where a sandbox has `put_files`, else one by one."""
    at_once = getattr(sandbox, "put_files", None)
    if at_once is not None:
        await at_once(files)
        return
    for name, data in files.items():
        await sandbox.write_file(f"{INPUT_DIR}/{name}", data)
