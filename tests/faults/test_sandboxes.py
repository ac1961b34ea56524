"""FI-05 and relatives: what stops, kills or hangs outside a sandbox is ours; the same from inside is not."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import pytest

from sandbox_rl.errors import SandboxFault
from sandbox_rl.sandboxes import agent_sandbox, embedded, spawner_client
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.sandboxes.spawner.live import all_parents, descendants
from sandbox_rl.types import ExecStatus
from tests.processes import alive, command, gone
from tests.unit.rig import SUBMIT, bash, make_engine, request, say


@pytest.fixture
async def backend():
    async with EmbeddedBackend() as backend:
        yield backend


@pytest.fixture
def impatient(monkeypatch):
    """A spawner that does not answer is given up soon; a slow machine's needs longer to answer."""
    monkeypatch.setattr(spawner_client, "ANSWER_TIMEOUT_S", 4.0)
    monkeypatch.setattr(embedded, "DEATH_TIMEOUT_S", 4.0)


def counted(backend) -> None:
    if backend.info.tier != "namespaces+cgroup":
        pytest.skip("without a memory group nobody counts what the kernel kills")


OTHERS: set[int] = set()
"""Spawners of backends that other tests of this process keep for a session."""


@pytest.fixture(autouse=True)
def _others():
    OTHERS.clear()
    OTHERS.update(spawners())


def spawners() -> list[int]:
    """Of this test, in the order of their starts."""
    children = sorted(psutil.Process().children(), key=lambda child: child.create_time())
    return [
        child.pid
        for child in children
        if child.pid not in OTHERS
        and alive(child.pid)
        and any(word.startswith("/proc/self/fd/") for word in command(child.pid))
    ]


def processes() -> tuple[int, int] | None:
    """Host-side ids of bubblewrap and of the first process of the one sandbox that runs a long command."""
    (spawner,) = spawners()
    parents = all_parents()
    for pid in descendants(spawner, parents):
        if "mark-of-this-test" in command(pid):
            line = [pid]
            while parents[line[-1]] != spawner:
                line.append(parents[line[-1]])
            return line[-1], line[-2]
    return None


@asynccontextmanager
async def running(sandbox, timeout=60.0):
    """A call that lasts, and the processes of its sandbox, see `processes`."""
    call = asyncio.ensure_future(sandbox.exec("exec -a mark-of-this-test sleep 60", timeout=timeout))
    try:
        while (found := processes()) is None:
            assert not call.done(), call
            await asyncio.sleep(0.05)
        yield call, *found
    finally:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("which", ["bubblewrap", "first process"])
async def test_a_sandbox_killed_from_outside_is_our_fault(backend, which):
    counted(backend)
    async with backend.sandbox() as sandbox, running(sandbox) as (call, outer, first):
        os.kill(outer if which == "bubblewrap" else first, signal.SIGKILL)
        with pytest.raises(SandboxFault, match="outside has killed"):
            await call
        with pytest.raises(SandboxFault):  # and stays so
            await sandbox.read_answer()


async def test_a_sandbox_stopped_from_outside_is_our_fault_in_time(backend, monkeypatch):
    monkeypatch.setattr(agent_sandbox, "KILL_GRACE_S", 1.0)
    async with backend.sandbox() as sandbox, running(sandbox, timeout=8.0) as (call, _, first):
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(SandboxFault, match="outside has stopped"):
            await call


@pytest.mark.parametrize(
    "command",
    [
        "kill -9 1; kill -STOP 1; kill -9 -1; sleep 1; echo alive",
        "for p in /proc/[0-9]*; do kill -9 ${p#/proc/}; kill -STOP ${p#/proc/}; done; sleep 1",
        "python3 -c 'import os; [os.kill(1, n) for n in range(1, 64)]'",
    ],
)
async def test_what_a_policy_does_to_its_first_process_is_never_our_fault(backend, command):
    async with backend.sandbox() as sandbox:
        result = await sandbox.exec(command, timeout=5)
        assert result.status in (ExecStatus.OK, ExecStatus.SANDBOX_DEAD, ExecStatus.TIMEOUT)
        await sandbox.read_answer()


async def test_memory_that_the_kernel_kills_for_is_never_our_fault(backend):
    async with backend.sandbox() as sandbox:
        hog = "python3 -c 'x = [bytearray(1 << 26) for _ in range(64)]'; " * 3
        result = await sandbox.exec(f"{hog} true", timeout=60)
        assert result.status is not ExecStatus.SANDBOX_DEAD or await sandbox.read_answer()


async def test_a_spawner_that_hangs_is_replaced(backend, impatient):
    """Nothing can be made while it is stopped; it is found out, ended, and the next sandbox has another."""
    (first,) = spawners()
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(SandboxFault):
        async with backend.sandbox(timeout=1):
            raise AssertionError("nobody can have made it")
    async with backend.sandbox(timeout=60) as sandbox:
        assert (await sandbox.exec("echo 1", timeout=60)).exit_code == 0
    (second,) = spawners()
    assert second != first


async def test_a_sandbox_whose_spawner_was_killed_and_replaced_meanwhile_is_our_fault(backend):
    """Nobody has asked for anything of it since."""
    async with backend.sandbox() as sandbox:
        (spawner,) = spawners()
        os.kill(spawner, signal.SIGKILL)
        gone({spawner})
        async with backend.sandbox(timeout=60) as other:  # by another spawner
            assert (await other.exec("true", timeout=60)).exit_code == 0
            with pytest.raises(SandboxFault, match="spawner has ended"):
                await sandbox.exec("true", timeout=60)
            with pytest.raises(SandboxFault, match="spawner has ended"):
                await sandbox.read_answer()


async def test_a_spawner_that_ends_while_it_is_asked_is_our_fault(backend, monkeypatch):
    monkeypatch.setattr(spawner_client, "ANSWER_TIMEOUT_S", 20.0)
    async with backend.sandbox() as sandbox, running(sandbox) as (call, _, first):
        (spawner,) = spawners()
        os.kill(spawner, signal.SIGSTOP)  # so that it does not answer any more
        os.kill(first, signal.SIGKILL)
        await asyncio.sleep(0.5)
        os.kill(spawner, signal.SIGKILL)
        with pytest.raises(SandboxFault, match="spawner has ended"):
            await call


async def test_a_spawner_that_hangs_makes_no_program_wait_for_ever(impatient):
    """Scoring workers are such programs."""
    place = ProgramSandboxes("import time; time.sleep(60)", memory_mb=256, start_timeout_s=12)
    await place.open({})
    try:
        (spawner,) = spawners()
        os.kill(spawner, signal.SIGSTOP)
        with pytest.raises(SandboxFault, match=r"not made within 12 s"):
            await place.start()
        assert spawner not in spawners()
        (await place.start()).kill()
    finally:
        await place.close()


async def test_a_spawner_that_is_killed_is_replaced_alone_and_costs_no_episode():
    """FI-25: each process of a run has one; the sandboxes of the one that dies are lost, and made again."""

    def script(episode_id, turn, ids):
        return say(*[(bash("sleep 0.5; echo 42 > answer.txt"),), (SUBMIT,)][turn])

    backends = EmbeddedBackend(), EmbeddedBackend()
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                make_engine(script, backend=backend, rollout={"concurrency": 4, "retries": 2})
            )
            for backend in backends
        ]
        killed, other = spawners()
        runs = [asyncio.ensure_future(e.run([request(str(n)) for n in range(8)])) for e in engines]
        await asyncio.sleep(0.8)
        os.kill(killed, signal.SIGKILL)
        rollouts = [rollout for run in runs for rollout in await run]
        assert killed not in spawners()
        assert other in spawners()
    assert [r.reward.value for r in rollouts] == [1.0] * 16
