"""Whether the host has room for one more sandbox."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from sandbox_rl.sandboxes.base import SandboxLimits

__all__ = ["HostRoom"]

POLL_S = 0.2
PROCESS_SHARE = 0.8  # of the processes that the kernel allows in all


class HostRoom:
    """Admission by the memory and the processes that the host has left.

    Limits are not reserved (most sandboxes use a fraction of theirs); one more is admitted while the
    free memory holds one whole sandbox beside the reserve.

    Args:
        limits: of one sandbox.
        reserve_mb: memory to leave to everything else, MiB.
        proc: where procfs is.
    """

    def __init__(self, limits: SandboxLimits, reserve_mb: int, *, proc: Path = Path("/proc")) -> None:
        self._needed_mb = limits.memory_mb + reserve_mb
        self._pids = limits.pids
        self._proc = proc

    def lacking(self) -> str:
        """What is missing for one more sandbox; "" when nothing is."""
        match = re.search(r"^MemAvailable:\s+(\d+) kB", self._read("meminfo"), re.MULTILINE)
        free_mb = int(match[1]) // 1024 if match else self._needed_mb
        if free_mb < self._needed_mb:
            return f"{free_mb} MiB of memory are free, {self._needed_mb} needed"
        most = min(int(self._read(f"sys/kernel/{name}") or 1 << 22) for name in ("pid_max", "threads-max"))
        load = re.search(r"\d+/(\d+) ", self._read("loadavg"))
        processes = int(load[1]) if load else 0
        if processes + self._pids > PROCESS_SHARE * most:
            return f"{processes} processes run, {most} are allowed"
        return ""

    def enough(self) -> bool:
        """Whether one more fits now."""
        return not self.lacking()

    async def wait(self) -> None:
        """Until one more fits; the caller's deadline bounds it."""
        while not self.enough():  # noqa: ASYNC110 - the kernel tells nobody when memory is free again
            await asyncio.sleep(POLL_S)

    def _read(self, name: str) -> str:
        try:
            return (self._proc / name).read_text()
        except OSError:
            return ""
