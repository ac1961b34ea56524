"""Whether the host can take one more sandbox."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from sandbox_rl.sandboxes.base import SandboxLimits

__all__ = ["HostCapacity"]

POLL_S = 0.2
PROCESS_SHARE = 0.8  # of the processes that the kernel allows in all


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

    def __init__(
        self,
        limits: SandboxLimits,
        reserve_mb: int,
        *,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._needed_mb = limits.memory_mb + reserve_mb
        self._pids = limits.pids
        self._reserve_mb = reserve_mb
        self._proc = proc
        self._cgroup = cgroup

    def free_mb(self) -> int:
        """Memory that is free beside the reserve, MiB: of the host, or of the container if that is less."""
        match = re.search(r"^MemAvailable:\s+(\d+) kB", _text(self._proc / "meminfo"), re.MULTILINE)
        host = int(match[1]) // 1024 if match else self._needed_mb
        return min([host, *self._of_container()]) - self._reserve_mb

    def _of_container(self) -> list[int]:
        """What the control group's limit leaves, not counting cached files, MiB; empty without a limit."""
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
        ):
            bound, used = _text(self._cgroup / limit).strip(), _text(self._cgroup / usage).strip()
            if bound.isdigit() and used.isdigit():
                stat = _text((self._cgroup / limit).parent / "memory.stat")
                match = re.search(rf"^{cached} (\d+)", stat, re.MULTILINE)
                return [(int(bound) - int(used) + (int(match[1]) if match else 0)) >> 20]
        return []

    def lacking(self) -> str:
        """What is missing for one more sandbox; "" when nothing is."""
        free_mb = self.free_mb() + self._reserve_mb
        if free_mb < self._needed_mb:
            return f"{free_mb} MiB of memory are free, {self._needed_mb} needed"
        most = min(
            int(_text(self._proc / f"sys/kernel/{name}") or 1 << 22) for name in ("pid_max", "threads-max")
        )
        load = re.search(r"\d+/(\d+) ", _text(self._proc / "loadavg"))
        processes = int(load[1]) if load else 0
        if processes + self._pids > PROCESS_SHARE * most:
            return f"{processes} processes run, {most} are allowed"
        return ""

    def enough(self) -> bool:
        return not self.lacking()

    async def wait(self) -> None:
        """Until one more fits; the caller's deadline bounds it."""
        while not self.enough():  # noqa: ASYNC110 - the kernel tells nobody when memory is free again
            await asyncio.sleep(POLL_S)


def _text(path: Path) -> str:
    """Its content; "" if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
