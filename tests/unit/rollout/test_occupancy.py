"""How busy the engine was, by hand and around real episodes."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_rl.agents.base import AgentTurn
from sandbox_rl.fakes import RecordingBackend, exec_ok
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.types import Action, StopReason
from tests.unit.rig import SUBMIT, bash, make_engine, request, say

TURN = AgentTurn(Action((), None, "stop"), (), "")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_by_hand():
    """Two episodes from 1 to 11; turns from 1 to 4 and from 3 to 6, so none from 0 on for five seconds."""
    clock = Clock()
    occupancy = Occupancy(clock)
    clock.now += 1  # nobody is alive: not counted
    first, second = request("a"), request("b")
    for episode in (first, second):
        occupancy.started(episode, ())
    occupancy.sampling(first)
    clock.now += 2
    occupancy.sampling(second)
    clock.now += 1
    occupancy.sampled(first, TURN)
    clock.now += 2
    occupancy.sampled(second, TURN)
    clock.now += 5
    for episode in (first, second):
        occupancy.ended(episode, StopReason.SUBMITTED)
    clock.now += 7
    assert occupancy.take() == {"perf/turns_in_flight": pytest.approx(6 / 10), "perf/engine_idle_s": 5.0}
    assert occupancy.take() == {}


def test_an_interval_may_begin_within_a_turn():
    clock = Clock()
    occupancy = Occupancy(clock)
    occupancy.started(request(), ())
    occupancy.sampling(request())
    clock.now += 3
    occupancy.take()
    clock.now += 2
    assert occupancy.take() == {"perf/turns_in_flight": 1.0, "perf/engine_idle_s": 0.0}


def test_an_episode_that_ends_within_a_turn_samples_no_more():
    clock = Clock()
    occupancy = Occupancy(clock)
    for name in "ab":
        occupancy.started(request(name), ())
    occupancy.sampling(request("a"))
    occupancy.ended(request("a"), None)
    clock.now += 2
    assert occupancy.take() == {"perf/turns_in_flight": 0.0, "perf/engine_idle_s": 2.0}


async def test_slow_commands_starve_the_engine_and_a_cancelled_episode_leaves_nothing_open():
    async def slow(command: str):
        await asyncio.sleep(float(command))
        return exec_ok()

    def script(episode_id, turn, ids):
        return [say(bash("30" if episode_id == "cut" else "0.3")), say(SUBMIT)][turn]

    async with make_engine(script, backend=RecordingBackend(slow)) as engine:
        await engine.run([request("a"), request("b")])
        assert engine.occupancy.take()["perf/engine_idle_s"] >= 0.25
        cut = asyncio.create_task(engine.run([request("cut")]))
        await asyncio.sleep(0.2)
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
        engine.occupancy.take()
        await asyncio.sleep(0.05)
        assert engine.occupancy.take() == {}
