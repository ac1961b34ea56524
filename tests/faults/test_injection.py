"""Faults that are injected look like faults, never like rewards, and leave everything else as it was."""

from __future__ import annotations

import pytest
import typer

from sandbox_rl import cli
from sandbox_rl.commands import train
from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import UserError
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.fault_injection import ChaosSettings, FaultyAgent, FaultyBackend, FaultyScoring, Injector
from sandbox_rl.fault_injection.settings import KINDS
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.sandboxes import forwarding
from sandbox_rl.types import StopReason
from tests.unit.rig import SUBMIT, ExactScoring, bash, make_engine, request, say, write


def right_or_wrong(episode_id, turn, ids):
    """Every third episode is wrong, so that a reward of 0 has its own cause."""
    answer = "41" if int(episode_id) % 3 == 0 else "42"
    return say(*[(bash("ls"),), (write(answer),), (SUBMIT,)][turn])


def faulty(
    share: float, kinds=KINDS, *, seed=0, retries=2
) -> tuple[RolloutEngine, Injector, RecordingBackend]:
    injector, backend = (
        Injector(ChaosSettings(share=share, seed=seed, kinds=dict.fromkeys(kinds, 1.0))),
        RecordingBackend(),
    )
    engine = make_engine(
        right_or_wrong,
        backend=FaultyBackend(backend, injector),
        scoring=FaultyScoring(ExactScoring(), injector),
        rollout={"retries": retries, "concurrency": 32},
        episode={"timeout_s": 300},
    )
    engine.agent = FaultyAgent(engine.agent, injector)
    return engine, injector, backend


async def rolled(engine: RolloutEngine, count: int):
    async with engine:
        return await engine.run([request(str(number)) for number in range(count)])


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(forwarding, "GRACE_S", -119.5)  # after the 120 s of a command
    monkeypatch.setattr(forwarding, "FILES_S", 0.5)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fault_that_lasts_is_no_reward_and_touches_no_other_episode(kind):
    engine, injector, backend = faulty(0.3, (kind,), retries=0)
    rollouts = await rolled(engine, 60)
    lost = [r for r in rollouts if r.reward.value is None]
    assert len(lost) == sum(injector.injected.values()) == injector.injected[kind]
    assert 5 < len(lost) < 40
    assert all(
        f"injected fault: {kind}" in (r.trajectory.fault or r.reward.detail)
        or (kind == "sandbox_hangs" and r.trajectory.fault)
        for r in lost
    )
    for number, rollout in enumerate(rollouts):
        if rollout.reward.value is not None:
            assert rollout.reward.value == float(number % 3 != 0)
            assert rollout.trajectory.stop is StopReason.SUBMITTED
    assert not backend.alive


async def test_what_is_tried_again_ends_as_without_faults():
    engine, injector, backend = faulty(0.4, ("sandbox_killed", "server_reset"), retries=12)
    rollouts = await rolled(engine, 60)
    assert min(injector.injected[kind] for kind in ("sandbox_killed", "server_reset")) > 3
    assert [r.reward.value for r in rollouts] == [float(number % 3 != 0) for number in range(60)]
    assert not backend.alive


async def test_the_seed_decides_which_are_struck():
    async def struck(seed):
        injector = Injector(ChaosSettings(share=0.2, seed=seed))
        return [injector.strikes(kind) for _ in range(200) for kind in KINDS]

    assert await struck(1) == await struck(1) != await struck(2)
    found = [number for number in await struck(3) if number is not None]
    assert 20 < len(found) < 65  # of 200 tries, a fifth


@pytest.mark.parametrize("share", ["2", "-0.1", "nan", "inf", "many", "", "0.6", "[0.1]"])
def test_a_share_that_makes_no_sense_is_one_line(share, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {sources: [{type: reasoning_gym, dataset: chain_sum, size: 8}]}\n")
    command = typer.main.get_command(cli.whole_app())
    with pytest.raises(UserError, match=r"chaos\.share") as refused:
        command.main(["train", str(recipe), f"--chaos={share}"], standalone_mode=False)
    assert "\n" not in str(refused.value)


def test_the_option_is_the_setting(tmp_path, monkeypatch):
    seen = []

    def opened(path, overrides):
        seen.append(load_recipe(path, overrides))
        raise UserError("read")

    monkeypatch.setattr(train, "open_recipe", opened)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {sources: [{type: reasoning_gym, dataset: chain_sum, size: 8}]}\n")
    command = typer.main.get_command(cli.whole_app())
    for given in ([], ["--chaos", "0.05"]):
        with pytest.raises(UserError, match="read"):
            command.main(["train", str(recipe), *given], standalone_mode=False)
    assert [loaded.chaos.share for loaded in seen] == [0.0, 0.05]
