"""Figures with what they must be, and what this process holds of the machine; part of bench_sandbox.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.sandboxes.spawner.cgroups import PREFIX

__all__ = ["Figure", "at_once", "below", "groups_of", "leaks", "proportional_mb", "start_time", "timed"]


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    required: float | None  # None: shown for comparison
    unit: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        if self.required is None:
            return True
        return self.value >= self.required if self.at_least else self.value <= self.required


async def leaks(backend: SandboxBackend, cycles: int, cancellations: int) -> list[Figure]:
    """What is left after many lives, and after many cancelled at random instants."""

    async def life() -> None:
        async with backend.sandbox({"q": b"?"}) as sandbox:
            await sandbox.exec("echo ok; sleep 100 &", timeout=30)

    dice = random.Random(0)

    async def cancelled() -> None:
        task = asyncio.create_task(life())
        await asyncio.sleep(dice.random() * 0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await at_once(life, 20, 8)
    await asyncio.sleep(1)  # until the sandboxes that are kept ready are replaced
    before, resident = held(), resident_mb()
    await at_once(life, cycles, 8)
    await asyncio.sleep(1)
    after_cycles, grown = held() - before, resident_mb() - resident
    await at_once(cancelled, cancellations, 8)
    await asyncio.sleep(1)
    return [
        Figure(f"left after {cycles} lives", after_cycles, 0, "things"),
        Figure(f"left after {cancellations} cancellations", held() - before, 0, "things"),
        Figure(f"the host grows over {cycles} lives by", grown, 4, "MB"),
    ]


def start_time(pid: int) -> str:
    """Start of a process in clock ticks, "" if there is none or it has ended and only waits for init."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if rest[0] in "ZX" else rest[19]


def groups_of(*owners: int) -> list[str]:
    """Control groups of those processes' backends and of their sandboxes."""
    mine = re.compile(rf"/{PREFIX}[^/-]*-(?:{'|'.join(map(str, owners))})-")
    # By walk, which lets groups go while it looks.
    return [place for place, _, _ in os.walk("/sys/fs/cgroup") if mine.search(place)]


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def at_once(work: Callable[[], Awaitable[object]], total: int, limit: int) -> None:
    free = asyncio.Semaphore(limit)

    async def one() -> None:
        async with free:
            await work()

    await asyncio.gather(*(one() for _ in range(total)))


def below(top: int | None = None) -> list[int]:
    """Processes below `top`, which is this one if not given."""
    top = top or os.getpid()
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    mine = {top}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sorted(mine - {top})


def proportional_mb() -> float:
    """Memory of the processes below this one, shared pages divided among their users."""
    total = 0
    for pid in below():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return total / 1024


def held() -> int:
    """Processes, descriptors, threads, mounts and cgroups that are ours."""
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    own = len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))
    return len(below()) + own + mounts + len(groups_of(os.getpid()))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)
