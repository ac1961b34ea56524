"""The first groups to end: whole ones, with nothing left of the others."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_rl.errors import InfraFault, SetupError
from sandbox_rl.fakes import RecordingBackend, exec_ok
from sandbox_rl.types import ExecResult
from tests.unit.rig import SUBMIT, bash, make_engine, request, say, write

LONG_S = 30.0
"""Far beyond what a loaded machine adds to the others."""


def seconds_of(episode_id: str) -> float:
    """Ids such as `g1-s0-0.2` say how long their command takes."""
    return float(episode_id.rsplit("-", 1)[1])


async def sleep(command: str) -> ExecResult:
    await asyncio.sleep(float(command))
    return exec_ok()


def script(episode_id, turn, ids):
    return [say(bash(str(seconds_of(episode_id)))), say(write("42")), say(SUBMIT)][turn]


def groups(*seconds):
    return [
        [request(f"g{group}-s{sample}-{s}") for sample, s in enumerate(some)]
        for group, some in enumerate(seconds)
    ]


async def test_the_slow_group_is_cancelled_whole_and_its_sandboxes_are_freed():
    backend = RecordingBackend(sleep)
    async with make_engine(script, backend=backend) as engine:
        async with asyncio.timeout(LONG_S / 2):
            found = await engine.run_groups(groups((0, 0), (0, LONG_S), (0, 0.1)), keep=2)
    assert sorted(found.ended) == sorted(found.seconds) == [0, 2]
    assert [[r.trajectory.episode_id for r in group] for group in found.ended.values()] == [
        ["g0-s0-0", "g0-s1-0"],
        ["g2-s0-0", "g2-s1-0.1"],
    ]
    assert [r.trajectory.episode_id for r in found.cut] == ["g1-s0-0"]
    assert found.cut_after == max(found.seconds.values()) >= 0.1
    assert not backend.alive


async def test_all_can_be_kept():
    async with make_engine(script, backend=RecordingBackend(sleep)) as engine:
        found = await engine.run_groups(groups((0, 0.2), (0, 0)), keep=2)
    assert sorted(found.ended) == [0, 1]
    assert not found.cut
    assert all(r.reward.value == 1.0 for group in found.ended.values() for r in group)


async def test_one_bound_holds_for_all_groups_together():
    live = most = 0

    async def counted(command: str) -> ExecResult:
        nonlocal live, most
        live += 1
        most = max(most, live)
        await asyncio.sleep(0.02)
        live -= 1
        return exec_ok()

    backend = RecordingBackend(counted)
    async with make_engine(script, backend=backend, rollout={"concurrency": 3}) as engine:
        await engine.run_groups(groups(*[(0, 0)] * 6), keep=6)
    assert most == 3


async def test_groups_that_failed_on_our_side_count_and_a_step_of_only_those_is_an_error():
    backend = RecordingBackend(fail_first=10**6)
    async with make_engine(script, backend=backend, rollout={"retries": 0}) as engine:
        with pytest.raises(InfraFault, match="all 4 episodes failed"):
            await engine.run_groups(groups((0, 0), (0, 0), (0, 0)), keep=2)


async def test_what_the_machine_cannot_do_stops_at_once():
    def impossible(episode_id, turn, ids):
        if episode_id.startswith("g0"):
            raise SetupError("namespaces: not allowed")
        return script(episode_id, turn, ids)

    backend = RecordingBackend(sleep)
    async with make_engine(impossible, backend=backend) as engine:
        async with asyncio.timeout(LONG_S / 2):
            with pytest.raises(SetupError, match="namespaces"):
                await engine.run_groups(groups((0, 0), (LONG_S, LONG_S)), keep=2)
    assert not backend.alive
