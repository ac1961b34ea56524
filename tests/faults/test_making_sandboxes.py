"""FI-01, FI-02: sandboxes that cannot be made for a while, or now and then."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox_rl.errors import SandboxFault
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.sandboxes.agent_backend import to_the_end
from sandbox_rl.sandboxes.config import EmbeddedSettings, PoolSettings
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.pool import SandboxPool
from tests.unit.rig import SUBMIT, bash, make_engine, request, say

QUICK = {"backoff_s": 0.01, "longest_backoff_s": 0.2, "probe_interval_s": 0.1}

FAILING = """#!/bin/sh
# A bubblewrap that fails for 30 % of all calls while FLAG is there.
if [ -e {flag} ] && [ $(( $(od -An -N1 -tu1 /dev/urandom) % 10 )) -lt 3 ]; then
  echo "bwrap: cannot allocate memory" | tee -a {flag} >&2
  exit 1
fi
exec {real} "$@"
"""


@pytest.fixture
def readable():
    """A directory that a sandbox's own user can reach; those of pytest are for one user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def test_a_bubblewrap_that_fails_for_three_of_ten_calls_costs_no_episode(readable):
    flag, program = readable / "flag", readable / "bwrap"
    program.write_text(FAILING.format(flag=flag, real=shutil.which("bwrap")))
    program.chmod(0o755)

    def script(episode_id, turn, ids):
        return say(*[(bash("echo 42 > answer.txt"),), (SUBMIT,)][turn])

    backend = EmbeddedBackend(settings=EmbeddedSettings(bwrap=str(program)))
    pool = SandboxPool(backend, settings=PoolSettings(**QUICK))
    async with make_engine(script, backend=pool, rollout={"concurrency": 8, "retries": 0}) as engine:
        flag.touch()
        flag.chmod(0o666)  # who runs it is no owner
        rollouts = await engine.run([request(str(n)) for n in range(32)])
        assert flag.read_text(), "some calls have failed"
    assert [r.reward.value for r in rollouts] == [1.0] * 32


class DeadDaemon(RecordingBackend):
    """Refuses everything while `down`, and its live sandboxes with it; counts who asks, then and else."""

    down = False
    asked = 0
    served = 0

    @asynccontextmanager
    async def sandbox(self, files=None, *, timeout=60.0):
        self.asked += self.down
        self.served += not self.down
        if self.down:
            raise SandboxFault("the Docker engine failed: connection refused")
        async with super().sandbox(files, timeout=timeout) as sandbox:
            yield sandbox


async def test_while_the_daemon_is_down_one_probe_asks_and_all_go_on_when_it_is_back():
    backend = DeadDaemon()

    def script(episode_id, turn, ids):
        return say(*[(bash("ls"),), (SUBMIT,)][turn])

    settings = PoolSettings(**QUICK, breaker_failures=3, warm=0)
    async with make_engine(script, backend=SandboxPool(backend, settings=settings)) as engine:
        backend.down = True
        running = asyncio.ensure_future(engine.run([request(str(n)) for n in range(24)]))
        started = time.monotonic()
        await asyncio.sleep(1.5)
        assert not running.done()
        probes = (time.monotonic() - started) / QUICK["probe_interval_s"]
        assert backend.asked < 3 + 24 + probes + 5  # not every one of them again and again
        backend.down = False
        rollouts = await running
    assert backend.served == 1 + 24, "one probe more, and nobody else looks for himself"
    assert all(r.reward.value is not None for r in rollouts)


class Refusing(RecordingBackend):
    @asynccontextmanager
    async def sandbox(self, files=None, *, timeout=60.0):
        raise SandboxFault("cannot allocate memory")
        yield


class SlowToGiveUp(RecordingBackend):
    """Fails at once, and takes its time to remove what it has begun to make."""

    @asynccontextmanager
    async def sandbox(self, files=None, *, timeout=60.0):
        try:
            raise SandboxFault("no space left on device")
        finally:
            await to_the_end(asyncio.sleep(0.3))
        yield


async def test_a_deadline_that_passes_while_a_failure_is_cleared_up_holds():
    async with SandboxPool(SlowToGiveUp(), settings=PoolSettings(**QUICK, warm=0)) as pool:
        async with asyncio.timeout(60):
            with pytest.raises(SandboxFault, match=r"no sandbox within 0\.1 s"):
                await pool.sandbox(timeout=0.1).__aenter__()


@pytest.mark.parametrize("ticks", range(8))
async def test_a_pool_that_is_left_as_a_sandbox_is_asked_for_ends(ticks):
    """Whatever its filler is doing just then: it waits for a request after a failure."""
    pool = SandboxPool(Refusing(), settings=PoolSettings(warm=1, longest_backoff_s=60))
    await pool.__aenter__()
    await asyncio.sleep(0.01)
    asked = asyncio.ensure_future(pool.sandbox(timeout=5).__aenter__())
    for _ in range(ticks):
        await asyncio.sleep(0)
    asked.cancel()
    async with asyncio.timeout(60):
        await pool.__aexit__(None, None, None)
