"""Correcting for the sampler inside the loss is what TRL does after sampling, one forward pass cheaper."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.async_support import PlayedWeights
from tests.smoke.support import RecordGradients, given_reward, make_rollout, make_trainer, rows_of

REWARDS = (1.0, 0.0, 0.25, 1.0, 0.0, 0.5, 0.0, 1.0)
MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


class Counted(SandboxGRPOTrainer):
    """Counts forward passes of the policy."""

    passes = 0

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.passes += 1
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


def rows(*, unknown: int | None = None):
    """Episodes of unequal lengths whose sampler's log-probs lie on both sides of the trainer's."""
    made = rows_of(
        [
            make_rollout("a" if i < 4 else "b", reward, seed=i, turns=1 + i % 4, length=4 + 5 * (i % 3))
            for i, reward in enumerate(REWARDS)
        ]
    )
    rng = random.Random(0)
    made["logprobs"] = [[rng.uniform(-8.5, -4.5) for _ in row] for row in made["logprobs"]]
    if unknown is not None:
        made["logprobs"][unknown][0] = float("nan")
    return made


def trained(directory, *, late: bool, unknown=None, micro_batch_tokens=None, **fields):
    """(trainer after one update, its gradients); with `late` False TRL corrects by itself."""
    recorded = RecordGradients()
    served = partial(Counted, weights=PlayedWeights(), micro_batch_tokens=micro_batch_tokens)
    trainer = make_trainer(
        directory,
        lambda prompts, trainer: rows(unknown=unknown),
        given_reward,
        cls=served,
        callbacks=[recorded],
        **{"max_completion_length": 64, **fields},
    )
    assert trainer.late.active
    trainer.late.active = late
    trainer.train()
    return trainer, recorded.steps[0]


def assert_equal(ours, theirs):
    """Losses, gradients and the mismatch that is shown."""
    (trainer, gradients), (trl, expected) = ours, theirs
    mine, its = trainer.state.log_history[0], trl.state.log_history[0]
    for name in ("loss", "mismatch/mean", "mismatch/max", "mismatch/kl"):
        assert mine[name] == pytest.approx(its[name], rel=1e-5, abs=1e-6), name
    assert expected.keys() == gradients.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "cispo"])
def test_loss_and_gradients_are_trl_s(tmp_path, mode, loss_type):
    fields = {"loss_type": loss_type, "vllm_importance_sampling_mode": mode}
    assert_equal(trained(tmp_path / "a", late=True, **fields), trained(tmp_path / "b", late=False, **fields))


def test_also_for_the_loss_that_takes_the_ratio_as_a_weight(tmp_path):
    fields = {"loss_type": "vespo", "vllm_importance_sampling_mode": "token_truncate"}
    assert_equal(trained(tmp_path / "a", late=True, **fields), trained(tmp_path / "b", late=False, **fields))


def test_also_in_micro_batches_and_their_parts(tmp_path):
    fields = {
        "vllm_importance_sampling_mode": "token_truncate",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    ours = trained(tmp_path / "a", late=True, micro_batch_tokens=60, **fields)
    theirs = trained(tmp_path / "b", late=False, **fields)
    assert ours[0].passes > 2
    assert_equal(ours, theirs)


def test_a_log_prob_that_the_sampler_does_not_know_counts_as_equal(tmp_path):
    fields = {"vllm_importance_sampling_mode": "token_truncate"}
    ours = trained(tmp_path / "a", late=True, unknown=1, **fields)
    assert_equal(ours, trained(tmp_path / "b", late=False, unknown=1, **fields))


def test_it_saves_a_pass_and_changes_the_gradient(tmp_path):
    """Without the correction the gradient is another one, so the equalities above say something."""
    ours, gradients = trained(tmp_path / "a", late=True)
    theirs, _ = trained(tmp_path / "b", late=False)
    assert (ours.passes, theirs.passes) == (1, 2)
    _, uncorrected = trained(tmp_path / "c", late=True, vllm_importance_sampling_clip_max=1e-6)
    assert any((gradients[name] - uncorrected[name]).abs().max() > 1e-3 for name in gradients)


def test_several_updates_per_generation_are_left_to_trl(tmp_path):
    """There the policy that sampled is not the one of the loss any more."""
    trainer = make_trainer(
        tmp_path,
        lambda prompts, trainer: rows(),
        given_reward,
        cls=partial(Counted, weights=PlayedWeights()),
        max_completion_length=64,
        num_iterations=2,
        max_steps=2,
    )
    trainer.train()
    assert trainer.passes == 3
    assert trainer.state.log_history[1]["mismatch/mean"] == trainer.state.log_history[0]["mismatch/mean"]
