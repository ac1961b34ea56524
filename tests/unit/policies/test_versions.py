"""Which weights each token of a turn was sampled with, where they change while it is sampled."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest

from sandbox_rl.journal import rollout_record, trajectory_from_record
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.training.asynchronous.rows import age_metrics
from sandbox_rl.training.samples import finished_group
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    Reward,
    Rollout,
    StopReason,
    Task,
    Trajectory,
    Turn,
)
from tests.unit.test_weight_transfer import Model, publishing


def sampled(**fields):
    """A turn of 8 tokens during which weights were published, from version 0 on."""
    (action,) = turns(1, **fields)
    return action


def turns(count, *, frozen_tokens, publications=1, **fields):
    """As many turns at once."""
    fake = FakeVLLM(delay_s=2.0, frozen_tokens=frozen_tokens, **fields)
    with publishing(fake) as (weights, loop, servers):

        class Source:
            served_model, max_context = "policy", 1000

            def __init__(self):
                self.servers = servers

            async def __aenter__(self):
                return self

            async def __aexit__(self, *exc):
                return None

            async def recovered(self, server):
                return None

        policy = VLLMPolicy(
            Source(), VLLMSettings(type="vllm"), end_ids=frozenset([2]), version=weights.version
        )

        async def running():
            return asyncio.get_running_loop()

        async def turn():
            async with policy.session("a") as session:
                return await session.act([5, 6], TurnSampling(max_tokens=8, seed=1), timeout=90)

        with loop.entered(policy):
            there = loop.run(running())
            futures = [asyncio.run_coroutine_threadsafe(turn(), there) for _ in range(count)]
            while len(fake.requests) < count:
                time.sleep(0.01)
            for _ in range(publications):
                weights.publish(Model(), weights.version.value + 1)
            return [future.result(90) for future in futures]


def test_a_turn_that_nobody_interrupts_has_one_version():
    action = sampled(frozen_tokens=0, publications=0)
    assert (action.versions, action.weight_switches) == ((0,) * 8, ())


def test_tokens_after_a_publication_have_its_version():
    action = sampled(frozen_tokens=3)
    assert (action.weight_version, action.weight_switches) == (0, ((3, 1),))
    assert action.versions == (0, 0, 0, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(("frozen", "versions"), [(0, (1,) * 8), (8, (0,) * 8)])
def test_a_publication_at_the_border_of_a_turn_divides_nothing(frozen, versions):
    action = sampled(frozen_tokens=frozen)
    assert (action.versions, action.weight_switches) == (versions, ())


def test_of_two_publications_at_the_same_token_the_later_counts():
    assert sampled(frozen_tokens=3, publications=2).weight_switches == ((3, 2),)


def test_a_turn_that_waited_for_a_seat_has_the_version_that_it_began_with():
    """It was asked for before the publication, and sampled after it."""
    frozen, waited = sorted(turns(2, slots=1, frozen_tokens=3), key=lambda action: action.weight_version)
    assert frozen.versions == (0, 0, 0, 1, 1, 1, 1, 1)
    assert (waited.versions, waited.weight_switches) == ((1,) * 8, ())


def test_where_the_server_does_not_say_no_token_seems_newer_than_it_is_and_it_is_counted():
    action = sampled(frozen_tokens=3, control_faults={"/collective_rpc sandbox_rl_switches": 9})
    assert (action.versions, action.switches_known) == ((0,) * 8, False)
    assert shares(action) == (0, 1)
    assert shares(sampled(frozen_tokens=3)) == (1, 0)
    assert shares(sampled(frozen_tokens=0, publications=0)) == (0, 0)


def shares(action):
    """The shares of divided and of unlabelled turns that an update logs, whose one episode has this turn;
    as it comes back from the journal of a run that goes on."""
    trajectory = Trajectory(
        "t", (5, 6), (Turn(action),), StopReason.SUBMITTED, Answer(AnswerStatus.OK, "4"), episode_id="e"
    )
    rollout = Rollout(trajectory, Reward(1.0), Task(id="t", prompt="?", answer="4"))
    record = rollout_record(rollout)
    rollout = replace(rollout, trajectory=trajectory_from_record(json.loads(json.dumps(record))))
    assert rollout.trajectory == trajectory
    group = finished_group([rollout] * 2, number=0, kind="rloo")
    metrics = age_metrics(group.samples, 1)
    found = [metrics[f"off_policy/{name}_turns"] for name in ("divided", "unlabelled")]
    return tuple(part / of for part, of in found)


@pytest.mark.parametrize("switches", [((0, 1),), ((4, 1),), ((2, 1), (2, 2)), ((3, 1), (1, 2))])
def test_switches_lie_between_tokens_and_grow(switches):
    with pytest.raises(ValueError, match="expected growing indices"):
        Action((1, 2, 3, 4), None, "stop", 0, switches)
