"""What only the ray backend promises: where sandboxes go, lost nodes, new nodes, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.sandboxes.config import PoolSettings, RaySettings
from sandbox_rl.sandboxes.ray.backend import RayBackend
from sandbox_rl.sandboxes.snapshots import branch, take_snapshot
from sandbox_rl.types import ExecStatus

from ..docker_engine import IMAGE
from ..processes import commands
from ..ray_cluster import RayCluster, settings_for
from ..unit.rig import SUBMIT, bash, make_engine, request, say, write

ROOT = Path(__file__).parents[2]
OWNER = """
import asyncio, os, sys
from sandbox_rl.sandboxes.config import RaySettings
from sandbox_rl.sandboxes.ray.backend import RayBackend

async def main():
    settings = RaySettings.model_validate_json(sys.argv[1])
    async with RayBackend(settings) as backend, backend.sandbox() as sandbox:
        await sandbox.exec(f"setsid sleep {sys.argv[2]} & true", timeout=60)
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def sleeping(seconds: str) -> int:
    """How many `sleep` with this odd number run anywhere on this machine."""
    return list(commands().values()).count(["sleep", seconds])


def actors() -> list[int]:
    """Process ids; those of a backend that was left go soon."""
    return [p.pid for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::SandboxNod")]


async def until(condition: object, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.1)


class Entered:
    """The backend of a fixture, which enters and leaves it itself."""

    def __init__(self, backend: RayBackend) -> None:
        self.info = backend.info
        self.sandbox = backend.sandbox

    async def __aenter__(self) -> Entered:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


async def refusal(settings: RaySettings) -> str:
    with pytest.raises(SetupError) as caught:
        async with RayBackend(settings):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def two_nodes(cluster: RayCluster) -> None:
    while len(cluster.nodes) < 2:
        await asyncio.to_thread(cluster.add)


@pytest.fixture
async def backend(cluster: RayCluster) -> AsyncIterator[RayBackend]:
    await two_nodes(cluster)
    async with RayBackend(settings_for(cluster.address), pool=PoolSettings(warm=0, max_live=3)) as made:
        yield made


async def test_sandboxes_spread_over_the_nodes_and_wait_when_all_are_full(backend: RayBackend) -> None:
    async with AsyncExitStack() as stack:
        made = await asyncio.gather(*(stack.enter_async_context(backend.sandbox()) for _ in range(6)))
        nodes = [sandbox.node for sandbox in made]  # type: ignore[attr-defined]
        assert sorted(nodes.count(node) for node in set(nodes)) == [3, 3]
        with pytest.raises(SandboxFault, match="no sandbox within 2 s; no node has capacity"):
            async with backend.sandbox(timeout=2):
                pass
        results = await asyncio.gather(*(sandbox.exec("echo $((6*7))", timeout=60) for sandbox in made))
        assert {result.stdout.head for result in results} == {b"42\n"}
    async with backend.sandbox(timeout=60) as sandbox:
        assert (await sandbox.exec("true", timeout=60)).exit_code == 0


async def test_a_killed_node_fails_its_sandboxes_alone_and_a_new_one_is_used(
    backend: RayBackend, cluster: RayCluster
) -> None:
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(backend.sandbox()) for _ in range(4)]
        hit = next(i for i in cluster.nodes if i.startswith(made[0].node.partition("/")[2]))  # type: ignore[attr-defined]
        there = [s for s in made if s.node == made[0].node]  # type: ignore[attr-defined]
        elsewhere = [s for s in made if s not in there]
        assert there
        assert elsewhere
        running = [asyncio.create_task(s.exec("sleep 777.125", timeout=700)) for s in there]
        spared = asyncio.create_task(elsewhere[0].exec("sleep 3; echo on", timeout=60))
        await until(lambda: sleeping("777.125") == len(there))
        await asyncio.to_thread(cluster.kill, hit)
        async with asyncio.timeout(60):  # a tenth of the time that the calls have
            for task in running:
                with pytest.raises(SandboxFault, match="is lost"):
                    await task
            with pytest.raises(SandboxFault):
                await there[0].read_answer()
        await until(lambda: not sleeping("777.125"))
        async with backend.sandbox(timeout=60) as again:  # what a refilled episode does
            assert again.node == elsewhere[0].node  # type: ignore[attr-defined]
        result = await spared
        assert (result.status, result.stdout.head) == (ExecStatus.OK, b"on\n")
        await asyncio.to_thread(cluster.add)
        await until(lambda: len(backend.info.details) == 2)


async def test_episodes_of_a_lost_node_begin_anew_and_are_judged(
    backend: RayBackend, cluster: RayCluster
) -> None:
    begun: list[str] = []

    def script(episode: str, turn: int, ids: Sequence[int]) -> Sequence[int]:
        if turn:
            return say(write("42")) if turn == 1 else say(SUBMIT)
        begun.append(episode)
        return say(bash("sleep 15.125" if begun.count(episode) == 1 else "true"))

    async with make_engine(script, backend=Entered(backend), episode={"timeout_s": 200}) as engine:
        requests = [request(f"e{i}") for i in range(4)]  # two on each node
        running = asyncio.create_task(engine.run(requests))
        await until(lambda: len(begun) == sleeping("15.125") == 4)
        await asyncio.to_thread(cluster.kill, cluster.nodes[0])
        rollouts = await asyncio.wait_for(running, 200)
    assert [rollout.reward.value for rollout in rollouts] == [1.0] * 4
    assert len(begun) == 6  # those of one node, twice


async def test_docker_on_the_nodes(cluster: RayCluster, engine: str) -> None:
    await two_nodes(cluster)
    node = {"type": "docker", "host": engine, "image": IMAGE, "read_only": {"/usr": "/usr"}}
    settings = settings_for(cluster.address, node=node)
    async with RayBackend(settings, pool=PoolSettings(warm=0)) as made, made.sandbox() as sandbox:
        assert "container" in made.info.tier
        assert (await sandbox.exec("echo there", timeout=60)).stdout.head == b"there\n"


async def test_a_killed_actor_is_replaced(backend: RayBackend, cluster: RayCluster) -> None:
    async with backend.sandbox() as sandbox:
        found = await sandbox.exec("sleep 78.125 & echo $!", timeout=60)
        assert found.exit_code == 0
        await until(lambda: len(actors()) == 2)
        for pid in actors():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxFault, match="is lost"):
            await sandbox.exec("true", timeout=60)
    await until(lambda: not sleeping("78.125"))
    assert backend.info.backend == "ray"  # even while there is no node
    async with backend.sandbox(timeout=90) as again:
        assert (await again.exec("true", timeout=60)).exit_code == 0


async def test_cancelled_requests_leave_no_sandbox(backend: RayBackend) -> None:
    for delay in (0.0, 0.005, 0.02, 0.05, 0.1):

        async def use() -> None:
            async with backend.sandbox() as sandbox:
                await sandbox.exec("sleep 79.125", timeout=100)

        tasks = [asyncio.create_task(use()) for _ in range(4)]
        await asyncio.sleep(delay)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=60)
        assert all(task.cancelled() for task in tasks)
    await until(lambda: not sleeping("79.125"))
    async with AsyncExitStack() as stack:  # every place is free again
        for _ in range(6):
            await stack.enter_async_context(backend.sandbox(timeout=60))


async def test_snapshots_go_from_node_to_node(backend: RayBackend) -> None:
    async with backend.sandbox({"a.txt": b"alpha"}) as sandbox:
        snapshot = await take_snapshot(sandbox)
        async with branch(backend, snapshot, 3) as copies:
            assert {copy.node for copy in copies} | {sandbox.node} == set(backend.info.details)  # type: ignore[attr-defined]
            for copy in copies:
                assert await copy.read_file("/testbed/documents/a.txt", max_bytes=99) == b"alpha"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_nothing_outlives_its_owner(cluster: RayCluster, how: signal.Signals) -> None:
    """Killed, or out of reach while Ray still counts it as alive."""
    await two_nodes(cluster)
    seconds = f"600.{how.value}"
    settings = settings_for(cluster.address, lost_after_s=3).model_dump_json()
    command = [sys.executable, "-c", OWNER, settings, seconds]
    owner = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert owner.stdout is not None
        async with asyncio.timeout(150):  # Ray tells every program of workers that died in earlier tests
            while (line := await owner.stdout.readline()) != b"ready\n":
                assert line, "it has ended"
        await until(lambda: sleeping(seconds))
        owner.send_signal(how)
        await until(lambda: not sleeping(seconds))
    finally:
        if owner.returncode is None:
            owner.kill()
        await owner.wait()


async def test_no_cluster() -> None:
    said = await refusal(RaySettings(type="ray", address="127.0.0.1:1"))
    assert "127.0.0.1:1" in said
    assert "ray start" in said


async def test_no_node_for_sandboxes(cluster: RayCluster) -> None:
    assert "{'moon': 1.0}" in await refusal(settings_for(cluster.address, resources={"moon": 1}))


async def test_a_node_that_cannot_make_sandboxes(cluster: RayCluster, tmp_path: Path) -> None:
    node = {"type": "embedded", "python_env": str(tmp_path / "none")}
    said = await refusal(settings_for(cluster.address, node=node))
    assert said.startswith("node ")
    assert "python_env" in said


def test_the_command_line_takes_it(cluster: RayCluster) -> None:
    arguments = [f"address={cluster.address}", "resources={sandboxes: 1}"]
    command = ["self-check", "--backend", "ray", "--cases", "ISO-01", "--json", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_rl.cli", *command],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["backend"]["backend"] == "ray"
    assert {row["verdict"] for row in report["cases"]} == {"pass"}
