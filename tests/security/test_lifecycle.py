"""A sandbox's life as seen from the host: cycles, cancellation, crowds, a killed trainer, misuse."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time

import pytest

from sandbox_rl.errors import SandboxDead
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.types import ExecStatus

from .conftest import Numbers
from .container import REPOSITORY
from .host_probe import leaked, probe, resident_mb

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_cycles_leave_nothing(backend: SandboxBackend, numbers: Numbers) -> None:
    """LIF-02."""
    before, memory = probe(), resident_mb()
    free = asyncio.Semaphore(16)

    async def cycle() -> None:
        async with free, backend.sandbox({"f": b"x"}) as sandbox:
            result = await sandbox.exec("sleep 100 & echo ok", timeout=60)
            assert result.stdout.head == b"ok\n"

    await asyncio.gather(*(cycle() for _ in range(numbers.cycles)))
    assert not leaked(before)
    assert resident_mb() - memory < 32


async def test_cancelled_anywhere_leaves_nothing(backend: SandboxBackend, numbers: Numbers) -> None:
    """LIF-03: cancellations at seeded instants of creating, running and closing."""
    before = probe()
    free = asyncio.Semaphore(8)

    async def one() -> None:
        async with backend.sandbox() as sandbox:
            await sandbox.exec("sleep 0.02; sleep 5 & sleep 5", timeout=60)

    async def cancelled(seed: int) -> None:
        async with free:
            task = asyncio.create_task(one())
            # Most of the life of a sandbox is its creation and its end, so most instants lie there.
            await asyncio.sleep(random.Random(seed).random() ** 3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*map(cancelled, range(numbers.cancellations)))
    assert not leaked(before)
    async with backend.sandbox() as sandbox:
        assert (await sandbox.exec("echo ok", timeout=60)).stdout.head == b"ok\n"


async def test_cancelled_twice_leaves_nothing(backend: SandboxBackend) -> None:
    before = probe()

    async def one() -> None:
        async with backend.sandbox() as sandbox:
            await sandbox.exec("sleep 5", timeout=60)

    for seed in range(20):
        task = asyncio.create_task(one())
        await asyncio.sleep(0.2 * random.Random(seed).random())
        task.cancel()
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not leaked(before)


_TRAINER = """
import asyncio, sys
from sandbox_rl.sandboxes.base import SandboxLimits
from tests.contract.backends import BACKENDS

async def live(backend, ready):
    async with backend.sandbox() as sandbox:
        await sandbox.exec("sleep {mark} >/dev/null 2>&1 & echo up", timeout=60)
        ready.release()
        await sandbox.exec("sleep {mark}", timeout=600)

async def main():
    ready = asyncio.Semaphore(0)
    async with BACKENDS["{backend}"](SandboxLimits()) as backend:
        tasks = [asyncio.create_task(live(backend, ready)) for _ in range({count})]
        for _ in tasks:
            await ready.acquire()
        print("ready", flush=True)
        await asyncio.gather(*tasks)

asyncio.run(main())
"""


def _marked(mark: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sleep", mark.encode()]:
                found.append(int(entry))
    return found


def _seconds_until_gone(mark: str, at_most: float) -> float:
    started = time.monotonic()
    while _marked(mark) and time.monotonic() - started < at_most:
        time.sleep(0.02)
    return time.monotonic() - started


async def test_killed_trainer_leaves_nothing(backend: SandboxBackend, numbers: Numbers) -> None:
    """LIF-04: SIGKILL of the owner of 64 live sandboxes; another owner's sandbox lives on.

    Embedded sandboxes go at once, without a reaper: the machine's load is all that takes time.
    """
    before = probe()
    mark = f"9{os.getpid():06d}"
    name = backend.info.backend
    program = _TRAINER.replace("{mark}", mark).replace("{backend}", name)
    program = program.replace("{count}", str(numbers.owned))
    async with backend.sandbox() as other:
        trainer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert trainer.stdout is not None
            assert await asyncio.wait_for(trainer.stdout.readline(), 200) == b"ready\n"
            async with asyncio.timeout(60):  # the trainer's sandboxes are at work before it is killed
                while len(_marked(mark)) < 2 * numbers.owned:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.05)
            trainer.send_signal(signal.SIGKILL)
            await asyncio.wait_for(trainer.wait(), 60)
        finally:
            if trainer.returncode is None:
                trainer.kill()
        assert await asyncio.to_thread(_seconds_until_gone, mark, numbers.gone_s) < numbers.gone_s
        assert (await other.exec("echo ok", timeout=60)).stdout.head == b"ok\n"
    assert not leaked(before)


async def test_misuse_is_typed_and_bounded(backend: SandboxBackend) -> None:
    """LIF-05: closing under a running call, closing twice, using it afterwards."""
    context = backend.sandbox()
    sandbox = await context.__aenter__()
    calls = [asyncio.create_task(sandbox.exec("sleep 300", timeout=300)) for _ in range(5)]
    await asyncio.sleep(0.3)
    await asyncio.wait_for(context.__aexit__(None, None, None), 60)
    results = await asyncio.wait_for(asyncio.gather(*calls), 60)
    assert {result.status for result in results} == {ExecStatus.SANDBOX_DEAD}
    assert (await sandbox.exec("true", timeout=60)).status is ExecStatus.SANDBOX_DEAD
    with pytest.raises(SandboxDead):
        await sandbox.write_file("/tmp/x", b"")


async def test_a_crowd_at_once(backend: SandboxBackend, numbers: Numbers) -> None:
    """LIF-07."""
    before = probe()
    everyone = asyncio.Barrier(numbers.crowd)

    async def one() -> str:
        async with backend.sandbox(timeout=250) as sandbox:
            await everyone.wait()
            result = await sandbox.exec("echo $((6*7))", timeout=120)
            assert result.stdout.head == b"42\n"
            await everyone.wait()
            return sandbox.id

    ids = await asyncio.gather(*(one() for _ in range(numbers.crowd)))
    assert len(set(ids)) == numbers.crowd
    assert not leaked(before)


async def test_a_flood_grows_the_host_by_little(backend: SandboxBackend) -> None:
    """3 GB of output: less than 16 MiB more on the host, and the end by the deadline."""
    async with backend.sandbox() as sandbox:
        await sandbox.exec("yes | head -c 5000000", timeout=60)  # buffers are there before counting
        memory, started, timeout = resident_mb(), time.monotonic(), 10
        result = await sandbox.exec("head -c 3000000000 /dev/zero", timeout=timeout)
        # `Sandbox.exec` promises an end at its time-out, however much is still on its way to the host.
        assert time.monotonic() - started < 3 * timeout
        assert result.truncated
        assert resident_mb() - memory < 16
