"""FI-06 to FI-08, FI-11: policy servers that fail everything, hang up, hang or are slow for some."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from sandbox_rl import retries
from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.vllm import progress
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.types import StopReason
from tests.unit.policies.test_vllm_client import PROMPT, act, policy_on
from tests.unit.rig import make_engine, request

OUTAGES = {
    "500": lambda body: web.Response(status=500),
    "503": lambda body: web.Response(status=503, text="starting"),
    "hangs up": lambda body: None,
}


async def rolled(policy, count, **episode):
    engine = make_engine(policy, episode={"turn_tokens": 8, **episode}, rollout={"retries": 0})
    async with AsyncExitStack() as stack:  # the policy is entered already
        await stack.enter_async_context(engine.backend)
        return await engine.run([request(str(number)) for number in range(count)])


@pytest.mark.parametrize("name", OUTAGES)
async def test_a_server_that_fails_everybody_is_waited_for(name):
    fake = FakeVLLM(delay_s=0.01)
    async with policy_on(fake, retries=1, backoff_s=0.01, outage_s=60) as policy:
        fake.outage = OUTAGES[name]
        running = asyncio.ensure_future(rolled(policy, 8, max_turns=2))
        while len(fake.requests) < 8 * 6:  # far more than the two tries that each has where others succeed
            await asyncio.sleep(0.01)
            assert not running.done()
        fake.outage = None
        rollouts = await running
    assert [r.trajectory.stop for r in rollouts] == [StopReason.MAX_TURNS] * 8
    for rollout in rollouts:  # no half turn is left: each is the whole answer to the prompt that was sent
        first, second = rollout.trajectory.turns
        assert (
            first.action.token_ids == (rollout.trajectory.prompt_ids[-1],) * 7 + first.action.token_ids[-1:]
        )
        assert first.action.lost_s > 0
        assert len(second.action.token_ids) == 8


async def test_the_time_of_an_outage_is_not_the_episodes(monkeypatch):
    monkeypatch.setattr(retries, "LONGEST_WAIT_S", 0.05)
    fake = FakeVLLM(outage=OUTAGES["503"])
    async with policy_on(fake, retries=0, backoff_s=0.01, outage_s=60) as policy:
        running = asyncio.ensure_future(rolled(policy, 1, max_turns=3, timeout_s=6.0))
        await asyncio.sleep(4.5)
        fake.outage, fake.extra_s = None, 0.7  # three turns take longer than what the outage has left
        (rollout,) = await running
    assert rollout.trajectory.stop is StopReason.MAX_TURNS
    assert rollout.trajectory.seconds > 6.0


async def test_a_request_that_alone_fails_is_given_up():
    fake = FakeVLLM(outage=OUTAGES["500"], strikes=lambda body: body["prompt"][-1] == 99)
    async with policy_on(fake, retries=3, backoff_s=0.05, outage_s=60) as policy:

        async def honest():
            while True:
                await act(policy)

        others = asyncio.ensure_future(honest())
        async with policy.session("poisoned") as session:
            with pytest.raises(EngineFault, match="4 tries"):
                await session.act([*PROMPT, 99], TurnSampling(max_tokens=4), timeout=60)
        others.cancel()


async def test_patience_has_an_end():
    fake = FakeVLLM(outage=OUTAGES["503"])
    async with policy_on(fake, retries=1, backoff_s=0.01, outage_s=0.5) as policy:
        started = time.monotonic()
        with pytest.raises(EngineFault, match="503"):
            await act(policy)
        assert time.monotonic() - started >= 0.5


async def test_new_episodes_go_to_servers_that_answer():
    away, well = FakeVLLM(outage=OUTAGES["503"]), FakeVLLM()
    async with policy_on(away, well, retries=0, outage_s=0) as policy:
        with pytest.raises(EngineFault):
            await act(policy)
        for _ in range(3):
            await act(policy)
    assert len(well.requests) == 3


@pytest.fixture
def quick_looks(monkeypatch):
    monkeypatch.setattr(progress, "LOOK_S", 0.25)


async def test_a_turn_that_is_sampled_to_the_end_of_the_episode_is_the_policys(quick_looks):
    async with policy_on(FakeVLLM(delay_s=3600)) as policy:
        with pytest.raises(TimeoutError):
            await act(policy, timeout=0.4)
        with pytest.raises(TimeoutError):  # less time than between two looks: the verdict is waited for
            await act(policy, timeout=0.01)


async def test_a_turn_that_waits_behind_others_to_the_end_is_the_policys(quick_looks):
    """The server has as much to do as it can."""
    fake = FakeVLLM(delay_s=0.5, slots=1)
    async with policy_on(fake) as policy:
        turns = [act(policy, timeout=timeout) for timeout in (60.0, 0.3)]
        done, late = await asyncio.gather(*turns, return_exceptions=True)
    assert len(done.token_ids) == 4
    assert type(late) is TimeoutError


async def test_a_server_that_hangs_to_the_end_of_the_episode_is_our_fault(quick_looks, monkeypatch):
    monkeypatch.setattr(progress, "ANSWER_S", 0.2)
    fake = FakeVLLM(delay_s=3600, hung=False)
    async with policy_on(fake, stalled_s=600) as policy:
        fake.hung = True
        with pytest.raises(EngineFault, match="does not answer at the end"):
            await act(policy, timeout=0.2)
        fake.hung = False


@pytest.mark.parametrize("when", ["from its beginning", "in the middle of it"])
async def test_an_engine_that_hangs_to_the_end_of_the_episode_is_our_fault(quick_looks, when):
    """`/health` is answered all the time."""
    fake = FakeVLLM(delay_s=3600, stuck=when == "from its beginning")
    async with policy_on(fake, stalled_s=5.0) as policy:
        acting = asyncio.ensure_future(act(policy, timeout=3.0))
        await asyncio.sleep(0.3)
        fake.stuck = True
        with pytest.raises(EngineFault, match="sampled nothing for"):
            await acting
        fake.stuck = False


async def test_an_engine_that_hangs_for_a_while_is_waited_for_and_its_turn_sampled_again(quick_looks):
    fake = FakeVLLM(stuck=True)
    async with policy_on(fake, stalled_s=0.3, retries=0, outage_s=60) as policy:
        acting = asyncio.ensure_future(act(policy))
        while len(fake.requests) < 2:  # noqa: ASYNC110 (a fake to look at, not a task)
            await asyncio.sleep(0.01)
        fake.stuck = False
        action = await acting
    assert action.lost_s > 0.3


async def test_requests_frozen_for_a_publication_are_no_hung_engine(quick_looks):
    fake = FakeVLLM(paused=True)
    async with policy_on(fake, stalled_s=0.3) as policy:
        acting = asyncio.ensure_future(act(policy))
        await asyncio.sleep(1.0)
        fake.paused = False
        await acting
    assert len(fake.requests) == 1


async def test_a_server_that_hides_what_its_engine_does_is_refused():
    with pytest.raises(SetupError, match=r"whether its engine works.*--disable-log-stats"):
        async with policy_on(FakeVLLM(log_stats=False)):
            pass


async def test_one_slow_request_ends_by_the_deadline_of_its_episode_and_delays_no_other():
    fake = FakeVLLM(delay_s=0.01, extra_s=100)
    first = iter([True])
    fake.strikes = lambda body: next(first, False)
    async with policy_on(fake, request_timeout_s=60) as policy:
        rollouts = await rolled(policy, 16, max_turns=1, timeout_s=10.0)
    stops = [r.trajectory.stop for r in rollouts]
    assert (stops.count(StopReason.TIMEOUT), stops.count(StopReason.MAX_TURNS)) == (1, 15)
