#!/usr/bin/env python3
"""Measures the sandboxes of this machine and prints each figure beside what it must be.

    python scripts/bench_sandbox.py [--quick] [--cycles N] [--cancellations N] [--kills N]
        [--docker HOST --image NAME [--show PATH]] [--only-docker]

With `--docker` containers are measured in the same run, and both against the reference way of using
containers (see bench_sandbox_docker.py). `scripts/start_docker_engine DIRECTORY` gives an engine for
`--docker unix://DIRECTORY/docker.sock --image sandbox-rl-skeleton:latest --show /usr`.

Run it on a machine that does nothing else: all times are wall time. Exit code 1 if a figure misses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import bench_sandbox_docker as containers
from rich.console import Console
from rich.table import Table

from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.sandboxes.config import DockerSettings, PoolSettings
from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.pool import SandboxPool
from sandbox_rl.types import ExecStatus

AT_ONCE = 32
ALIVE = 256
KEPT = 32  # threads and connections that the docker backend keeps for its next calls


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


async def alone(backend: EmbeddedBackend, rounds: int) -> list[Figure]:
    """One sandbox at a time."""
    create, execute, destroy = [], [], []
    for _ in range(rounds):
        started = time.perf_counter()
        async with backend.sandbox() as sandbox:
            create.append(time.perf_counter() - started)
            for _ in range(5):
                started = time.perf_counter()
                await sandbox.exec("true", timeout=10)
                execute.append(time.perf_counter() - started)
            started = time.perf_counter()
        destroy.append(time.perf_counter() - started)
    return [
        Figure("create, p50, alone", 1000 * statistics.median(create), 15, "ms"),
        Figure("exec of `true`, p50", 1000 * statistics.median(execute), 3, "ms"),
        Figure("destroy, p50", 1000 * statistics.median(destroy), 3, "ms"),
    ]


async def pooled(rounds: int) -> list[Figure]:
    """What a request waits for a sandbox that was made ahead of need."""
    waited = []
    async with SandboxPool(EmbeddedBackend(), settings=PoolSettings(warm=2)) as pool:
        for _ in range(rounds):
            while pool.warm < 2:  # noqa: ASYNC110 - the pool has no event for it
                await asyncio.sleep(0.01)
            started = time.perf_counter()
            async with pool.sandbox({"question.txt": b"?"}):
                waited.append(time.perf_counter() - started)
    return [Figure("request to a warm pool, p50", 1000 * statistics.median(waited), 3, "ms")]


async def throughput(backend: EmbeddedBackend, total: int) -> list[Figure]:
    """Create, one exec, destroy, many at once."""

    async def life() -> None:
        async with backend.sandbox() as sandbox:
            await sandbox.exec("true", timeout=30)

    seconds = await timed(lambda: at_once(life, total, AT_ONCE))
    return [Figure(f"create + exec + destroy, {AT_ONCE} at once", total / seconds, 60, "/s", at_least=True)]


async def many_alive(backend: EmbeddedBackend, count: int) -> list[Figure]:
    """Latency and memory with many idle sandboxes."""
    async with AsyncExitStack() as stack:
        before = proportional_mb()
        sandboxes = await asyncio.gather(
            *(stack.enter_async_context(backend.sandbox(timeout=120)) for _ in range(count))
        )
        each = (proportional_mb() - before) / count
        seconds = []
        for sandbox in random.Random(0).choices(sandboxes, k=300):
            started = time.perf_counter()
            await sandbox.exec("true", timeout=10)
            seconds.append(time.perf_counter() - started)
    return [
        Figure(f"exec, p99, {count} alive", 1000 * statistics.quantiles(seconds, n=100)[98], 100, "ms"),
        Figure("memory per idle sandbox (PSS)", each, 4, "MB"),
    ]


async def flood(backend: EmbeddedBackend) -> list[Figure]:
    """A command that prints 3 GB."""
    async with backend.sandbox() as sandbox:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = await sandbox.exec("head -c 3000000000 /dev/zero", timeout=60)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert result.status in (ExecStatus.OK, ExecStatus.OUTPUT_LIMIT), result.status
    return [
        Figure("3 GB of output: the host grows by", growth, 16, "MB"),
        Figure("3 GB of output: time", result.seconds, 60, "s"),
    ]


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


async def docker_figures(settings: DockerSettings, quick: bool) -> list[Figure]:
    """Containers, the reference way and embedded sandboxes at the same work, by turns."""
    limit, total, crowd = 8, 16 if quick else 32, 16 if quick else 64
    reference, floor = containers.Reference(settings, limit), containers.Floor(settings, limit)
    rounds: dict[str, list[float]] = {"ours": [], "floor": [], "theirs": [], "embedded": []}
    try:
        async with DockerBackend(settings=settings) as backend, EmbeddedBackend() as embedded:
            create, execute = await containers.alone(backend, 5 if quick else 20)
            alive, among = await containers.crowd(backend, crowd)
            left = await leaks(backend, *((24, 8) if quick else (200, 50)))
            for _ in range(1 if quick else 3):
                for name, work, count, width in (
                    ("ours", lambda: containers.episode(backend), total, limit),
                    ("floor", floor.episode, total, limit),
                    ("theirs", reference.episode, total // 2, limit),
                    ("embedded", lambda: containers.episode(embedded), 10 * total, AT_ONCE),
                ):
                    rounds[name].append(count / await timed(partial(at_once, work, count, width)))
    finally:
        reference.close()
        floor.close()
    ours, least, theirs, fast = (statistics.median(rates) for rates in rounds.values())
    enough = min(3, 0.8 * least / theirs)  # nothing can be faster than the engine itself
    return [
        Figure("docker: create, p50, alone", create, None, "ms"),
        Figure("docker: exec of `true`, p50", execute, 5, "ms"),
        Figure(f"docker: until {crowd} at once are alive", alive, None, "s"),
        Figure(f"docker: exec among {crowd}, p50", among, None, "ms"),
        *(Figure(f"docker: {f.name}", f.value, f.required or KEPT, f.unit) for f in left),
        Figure("docker: containers left", await containers.left(settings), 0, "things"),
        Figure("reference: exec of `true`, p50", 1000 * statistics.median(reference.executed), None, "ms"),
        Figure("reference: episodes", theirs, None, "/s"),
        Figure("engine's floor: the same container, nothing done", least, None, "/s"),
        Figure("docker: episodes", ours, None, "/s"),
        Figure("docker: episodes, of the floor", 100 * ours / least, None, "%"),
        Figure("docker: episodes, against the reference", ours / theirs, enough, "x", at_least=True),
        Figure("embedded: episodes", fast, None, "/s"),
        Figure("embedded: episodes, against the reference", fast / theirs, 20, "x", at_least=True),
    ]


OWNER = """
import asyncio
from sandbox_rl.sandboxes.embedded import EmbeddedBackend

async def live(backend):
    while True:
        async with backend.sandbox({"q": b"?"}) as sandbox:
            await sandbox.exec("sleep 100 & sleep 0.1", timeout=30)

async def main():
    async with EmbeddedBackend() as backend:
        print("ready", flush=True)
        await asyncio.gather(*(live(backend) for _ in range(8)))

asyncio.run(main())
"""


async def killed_owners(kills: int) -> list[Figure]:
    """SIGKILL at random instants to a process that makes, uses and closes eight sandboxes at once."""
    dice, left, slowest = random.Random(0), 0, 0.0
    for _ in range(kills):
        owner = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OWNER, stdout=asyncio.subprocess.PIPE
        )
        assert owner.stdout is not None
        assert await asyncio.wait_for(owner.stdout.readline(), 60) == b"ready\n"
        await asyncio.sleep(dice.random() * 0.5)
        alive = {(pid, at) for pid in below(owner.pid) if (at := start_time(pid))}
        assert alive
        owner.kill()
        started = time.perf_counter()
        await owner.wait()
        while rest := sum(start_time(pid) == at for pid, at in alive) + len(groups_of(owner.pid)):
            if time.perf_counter() - started > 10:
                left += rest
                break
            await asyncio.sleep(0.005)
        slowest = max(slowest, time.perf_counter() - started)
    return [
        Figure(f"left after {kills} killed owners", left, 0, "things"),
        Figure("the slowest to be gone after its owner's kill", slowest, 1, "s"),
    ]


def start_time(pid: int) -> str:
    """Start of a process in clock ticks, "" if there is none or it has ended and only waits for init."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if rest[0] in "ZX" else rest[19]


def groups_of(owner: int) -> list[str]:
    """Control groups of that process's backends, also while they go."""
    below = (name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    return [name for name in below if name.startswith("sandbox_rl-") and name.split("-")[2] == str(owner)]


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
    cgroups = sum(1 for _ in Path("/sys/fs/cgroup").glob(f"**/sandbox_rl-*-{os.getpid()}-*/*/"))
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    own = len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))
    return len(below()) + own + mounts + cgroups


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


async def embedded_figures(options: argparse.Namespace) -> list[Figure]:
    quick = options.quick
    async with EmbeddedBackend() as backend:
        print(f"{backend.info.backend}: {backend.info.tier}, {backend.info.version}")
        figures = await alone(backend, 15 if quick else 60)
        figures += await pooled(10 if quick else 30)
        figures += await throughput(backend, 64 if quick else 320)
        figures += await many_alive(backend, 32 if quick else ALIVE)
        figures += await flood(backend)
        figures += await leaks(backend, *((40, 20) if quick else (options.cycles, options.cancellations)))
    return figures + await killed_owners(5 if quick else options.kills)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no 256 sandboxes")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--cancellations", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100, help="of owners")
    parser.add_argument("--docker", default="", help="address of an engine; without it no containers")
    parser.add_argument("--image", default="sandbox-rl:latest")
    parser.add_argument("--show", action="append", default=[], help="path of the engine's machine to show")
    parser.add_argument("--only-docker", action="store_true")
    options = parser.parse_args()
    console = Console()
    console.print(f"load {os.getloadavg()}")
    figures = [] if options.only_docker else await embedded_figures(options)
    if options.docker:
        show = {path: path for path in options.show}
        values = {"type": "docker", "host": options.docker, "image": options.image, "read_only": show}
        figures += await docker_figures(DockerSettings.model_validate(values), options.quick)
    table = Table("figure", "measured", "required", "")
    for figure in figures:
        sign = "≥" if figure.at_least else "≤"
        measured = f"{figure.value:.2f} {figure.unit}"
        required = "" if figure.required is None else f"{sign} {figure.required:.3g} {figure.unit}"
        table.add_row(figure.name, measured, required, "yes" if figure.holds else "[red]no[/red]")
    console.print(table)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
