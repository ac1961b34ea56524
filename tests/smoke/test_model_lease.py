"""The update never meets the sampler: rollouts that end while a turn is still sampled change no gradient."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.policies.transformers import TransformersPolicy
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.tiny import tiny_model
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import EOS, TOKENIZER, RecordGradients, make_trainer
from tests.smoke.test_update import batch
from tests.unit.rig import SUBMIT, make_engine, request, say

ACCUMULATION = 4
TOKEN_S = 0.3
ENDLESS = frozenset([10**6])


class WithALateTurn:
    """Episodes that were played before, beside one whose turn is given up while it is sampled."""

    def __init__(self, rollouts) -> None:
        self.rollouts = rollouts
        self.policy = None
        self.occupancy = Occupancy()

    async def run(self, requests, observer=None):
        if self.policy is not None:
            async with self.policy.session("late") as session:
                with pytest.raises(TimeoutError):
                    await session.act([1, 2, 3], TurnSampling(max_tokens=900), timeout=2.5 * TOKEN_S)
        return self.rollouts


class Watched(SandboxGRPOTrainer):
    """Notes the mode that each micro-batch's forward pass and loss see."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.modes = []

    def compute_loss(self, model, *args, **kwargs):
        self.modes.append(model.training)
        loss = super().compute_loss(model, *args, **kwargs)
        self.modes.append(model.training)
        return loss


def update(directory, *, disturbed):
    """(loss, gradients, modes, passes of the sampler in all) of one update in four micro-batches."""
    rollouts, recorded, passes = batch(), RecordGradients(), []
    lease = ModelLease()

    def slow(*_):
        if threading.current_thread().name.startswith("policy"):
            passes.append(time.monotonic())
            time.sleep(TOKEN_S)

    with LoopThread(lease) as loop:
        late = WithALateTurn(rollouts)
        func = GroupRollouts(
            late, loop, {r.task.id: r.task for r in rollouts}, estimator="trl", seed=0, eos_id=EOS
        )
        trainer = make_trainer(
            directory,
            func,
            outcome_reward,
            cls=Watched,
            callbacks=[recorded],
            per_device_train_batch_size=8 // ACCUMULATION,
            gradient_accumulation_steps=ACCUMULATION,
        )
        policy = TransformersPolicy(trainer.model, end_ids=ENDLESS, pad_id=0, max_context=1024, lease=lease)
        late.policy = policy if disturbed else None
        trainer.model.register_forward_hook(slow)
        with loop.entered(policy):
            trainer.train()
    return trainer.state.log_history[0]["loss"], recorded.steps[0], trainer.modes, len(passes)


def test_a_turn_that_is_given_up_changes_neither_loss_nor_gradient(tmp_path):
    loss, gradients, modes, passes = update(tmp_path / "alone", disturbed=False)
    assert (passes, modes) == (0, [True] * 2 * ACCUMULATION)
    other_loss, others, modes, passes = update(tmp_path / "disturbed", disturbed=True)
    assert modes == [True] * 2 * ACCUMULATION
    assert 0 < passes <= 4  # of 900: those before its time was over, and the one that it was in
    assert other_loss == loss
    for name, gradient in gradients.items():
        assert torch.equal(others[name], gradient), name


class FirstEnds:
    """The first group submits at once; the others sample and never get to an end."""

    def __init__(self, policy) -> None:
        self._policy = policy
        self._scripted = ScriptedPolicy(lambda *_: say(SUBMIT), max_context=policy.max_context)
        self.max_context = policy.max_context

    def session(self, episode_id):
        return (self._scripted if episode_id.startswith("0-") else self._policy).session(episode_id)

    async def __aenter__(self):
        await self._policy.__aenter__()
        return self

    async def __aexit__(self, *exc):
        await self._policy.__aexit__(*exc)


@pytest.mark.parametrize("how", ["timeout_s", "over_sample"])
def test_the_model_is_the_trainer_s_when_episodes_were_cut(how):
    """Real episodes whose turns would never end: time-outs, and groups that are cut as the slowest."""
    model, lease, passes = tiny_model(TOKENIZER, seed=0).train(), ModelLease(), []

    def slow(*_):
        passes.append(time.monotonic())
        time.sleep(TOKEN_S)

    model.register_forward_hook(slow)
    policy = TransformersPolicy(
        model, end_ids=ENDLESS, pad_id=0, max_context=4096, lease=lease, max_delay_s=0.0
    )
    seconds = 1.5 if how == "timeout_s" else 60
    engine = make_engine(
        FirstEnds(policy), episode={"timeout_s": seconds, "turn_tokens": 2000, "max_tokens": 4000}
    )
    with LoopThread(lease) as loop, loop.entered(engine):
        for _ in range(2):
            groups = [[request(f"{group}-{i}") for i in range(2)] for group in (0, 1)]
            if how == "timeout_s":
                rollouts = loop.run(engine.run(groups[1]))
                assert {r.trajectory.stop.value for r in rollouts} == {"timeout"}
            else:
                assert list(loop.run(engine.run_groups(groups, keep=1)).ended) == [0]
            seen = len(passes)
            assert all(module.training for module in model.modules())
            time.sleep(4 * TOKEN_S)
            assert len(passes) == seen
    assert passes or how == "over_sample"
