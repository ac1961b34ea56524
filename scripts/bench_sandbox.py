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
import os
import random
import resource
import statistics
import sys
import time
from contextlib import AsyncExitStack

from bench_sandbox_docker import AT_ONCE, docker_figures
from bench_sandbox_measures import (
    Figure,
    at_once,
    below,
    groups_of,
    leaks,
    proportional_mb,
    start_time,
    timed,
)
from rich.console import Console
from rich.table import Table

from sandbox_rl.sandboxes.config import DockerSettings, PoolSettings
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.pool import SandboxPool
from sandbox_rl.types import ExecStatus

ALIVE = 256


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
