"""An episode without a reward has no gradient, neither through its advantage nor through the KL term."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.training.estimator import to_rows
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from sandbox_rl.types import StopReason
from tests.smoke.support import EOS, RecordGradients, make_rollout, make_trainer
from tests.smoke.test_audit import with_log_probs

REWARDS = (1.0, None, 0.0, 0.0, None, 1.0, 0.0, None)
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo"]


def rollouts(seed: int = 0, length: int = 6):
    """Two groups; `seed` and `length` are of those that have no reward."""
    made = []
    for place, reward in enumerate(REWARDS):
        own = {"seed": 100 + place} if reward is not None else {"seed": seed + place, "length": length}
        made.append(make_rollout("ab"[place // 4], reward, **own))
    prompts = [made[0].trajectory.prompt_ids, made[5].trajectory.prompt_ids]
    return [
        replace(r, trajectory=replace(r.trajectory, prompt_ids=prompts[i // 4])) for i, r in enumerate(made)
    ]


def without_tokens(rollout):
    if rollout.reward.value is not None:
        return rollout
    return replace(rollout, trajectory=replace(rollout.trajectory, turns=()))


def with_reference(directory, **own):
    """A trainer class whose model lies where TRL loads the reference model from."""

    def make(*, model, **given):
        model.save_pretrained(directory / "start")
        model.config._name_or_path = str(directory / "start")
        return SandboxGRPOTrainer(model=model, **given, **own)

    return make


def gradient(directory, made, *, unmask=False, **fields):
    """Of one update with a reference model that is another one: at the same point KL has no gradient."""

    def func(prompts, trainer):
        rows = to_rows([made[i : i + 4] for i in range(0, len(made), 4)], estimator="paper", eos_id=EOS)
        if unmask:
            rows["env_mask"] = [list(r.trajectory.action_mask) or [0] for r in made]
        return {**rows, "rollout_metrics": [{}] * len(made)}

    recorder = RecordGradients()
    trainer = make_trainer(
        directory,
        func,
        outcome_reward,
        cls=with_reference(directory),
        callbacks=[recorder],
        beta=0.1,
        max_completion_length=64,
        **fields,
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in trainer.ref_model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    trainer.train()
    (found,) = recorder.steps
    return torch.cat([g.flatten() for g in found.values()])


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_a_reward_have_no_gradient_through_kl(tmp_path, loss):
    """The gradient is that of rows which have no token at all, whatever was sampled in them."""
    expected = gradient(tmp_path, [without_tokens(r) for r in rollouts()], loss_type=loss)
    for made in (rollouts(), rollouts(seed=50, length=12)):
        found = gradient(tmp_path, made, loss_type=loss)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert expected.norm() > 1e-3


def test_the_comparison_sees_the_kl_of_such_rows(tmp_path):
    """Teeth: their tokens marked as sampled, as those of others."""
    expected = gradient(tmp_path, [without_tokens(r) for r in rollouts()], loss_type="grpo")
    found = gradient(tmp_path, rollouts(), loss_type="grpo", unmask=True)
    assert (found - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("parts", [None, 40], ids=["whole", "parts"])
def test_the_audit_names_why_such_rows_are_not_trained(tmp_path, parts):
    """Masked by the recipe, our fault, not judged: three classes, which add up, and no alarm."""
    made = rollouts()
    made[1] = replace(made[1], reward=replace(made[1].reward, masked=True))
    made[4] = replace(made[4], trajectory=replace(made[4].trajectory, stop=StopReason.SUBMITTED))

    class Episodes:
        occupancy = Occupancy()

        async def run(self, requests, observer=None):
            return made

    audit = RunAudit.start()
    with LoopThread() as loop:
        func = GroupRollouts(
            Episodes(), loop, {"a": made[0].task, "b": made[5].task}, estimator="paper", seed=0, eos_id=EOS,
            audit=audit.samples,
        )  # fmt: skip
        trainer = make_trainer(
            tmp_path,
            func,
            outcome_reward,
            cls=with_reference(tmp_path, audit=audit, micro_batch_tokens=parts),
            beta=0.1,
        )
        made[:] = [with_log_probs(r, trainer.model) for r in made]
        trainer.train()
    logged = next(line for line in trainer.state.log_history if "samples/tokens" in line)
    sampled = sum(sum(r.trajectory.action_mask) for r in made)
    shares = {
        name: sum(made[place].trajectory.action_mask) / sampled
        for name, place in {"overlong": 1, "not_judged": 4, "infra_fault": 7}.items()
    }
    assert logged["samples/tokens"] == sampled
    assert {name: logged[f"samples/{name}"] for name in shares} == pytest.approx(shares)
    assert logged["samples/trained"] == pytest.approx(1 - sum(shares.values()))
    assert audit.alarms.raised == ()
