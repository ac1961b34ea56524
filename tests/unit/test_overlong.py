"""What an episode earns that a budget ended: the recipe chooses, for turns and tokens and for time."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_rl.fakes import RecordingBackend, exec_ok
from sandbox_rl.metrics import rollout_metrics
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.types import StopReason
from tests.unit.rig import bash, make_engine, request, say, write

RIGHT = [say(write("42")), say(bash("true"), bash("true"))]


async def too_slow(command: str):
    await asyncio.sleep(1.2)
    return exec_ok()


async def run(stop, override=None, **rollout):
    """One episode with the right answer in its file that `stop` ends."""
    late = stop is StopReason.TIMEOUT
    engine = make_engine(
        lambda _, turn, ids: RIGHT[turn],
        backend=RecordingBackend(too_slow) if late else None,
        episode={"timeout_s": 2.0} if late else {"max_turns": 2},
        rollout=rollout,
    )
    async with engine:
        (done,) = await engine.run([request()], overlong=override)
    assert done.trajectory.stop is stop
    return done.reward


def test_the_paper_s_choice_is_the_default():
    assert (RolloutSettings().overlong, RolloutSettings().timed_out) == ("zero", "zero")


@pytest.mark.parametrize(
    ("choice", "value", "masked"), [("zero", 0.0, False), ("score", 1.0, False), ("mask", None, True)]
)
@pytest.mark.parametrize(
    ("stop", "setting"), [(StopReason.MAX_TURNS, "overlong"), (StopReason.TIMEOUT, "timed_out")]
)
async def test_each_choice_for_each_budget(stop, setting, choice, value, masked):
    reward = await run(stop, **{setting: choice})
    assert (reward.value, reward.masked) == (value, masked)
    other = "overlong" if setting == "timed_out" else "timed_out"
    assert (await run(stop, **{other: choice})).value == 0.0


@pytest.mark.parametrize("stop", [StopReason.MAX_TURNS, StopReason.TIMEOUT])
async def test_evaluation_scores_both_whatever_the_recipe_says(stop):
    assert (await run(stop, "score", overlong="mask", timed_out="mask")).value == 1.0


async def test_a_masked_episode_is_not_counted_as_our_fault():
    async with make_engine(
        lambda _, turn, ids: RIGHT[turn], episode={"max_turns": 2}, rollout={"overlong": "mask"}
    ) as engine:
        metrics = rollout_metrics(await engine.run([request("a"), request("b")]))
    assert metrics == {"episodes": 2.0, "judged": 0.0, "infra_fault_rate": 0.0, "masked_rate": 1.0}
