"""The gradient is right: against TRL itself, against arithmetic done by hand, and zero where masked."""

from __future__ import annotations

import pytest
import torch

from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.training.estimator import estimator_fields, to_rows
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.micro_batches import trim_padding
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from sandbox_rl.types import Rollout
from tests.smoke.support import (
    EOS,
    TOKENIZER,
    RecordGradients,
    given_reward,
    make_rollout,
    make_trainer,
    rows_of,
    tiny_model,
)

REWARDS = (1.0, 0.0, 0.25, 1.0, 0.0, 0.5, 0.0, 1.0)


def batch(rewards=REWARDS) -> list[Rollout]:
    """Two groups of four with very unequal lengths."""
    return [
        make_rollout("a" if i < 4 else "b", reward, seed=i, turns=1 + i % 4, length=4 + 5 * (i % 3))
        for i, reward in enumerate(rewards)
    ]


class Prepared:
    """Stands where the rollout engine stands: the episodes have been played already."""

    def __init__(self, rollouts: list[Rollout]) -> None:
        self.rollouts = rollouts
        self.occupancy = Occupancy()

    async def run(self, requests, observer=None):
        assert [r.task.id for r in requests] == [r.task.id for r in self.rollouts]
        return self.rollouts


def our_trainer(directory, rollouts, loop, *, estimator="trl", callbacks=(), **fields):
    func = GroupRollouts(
        Prepared(rollouts),
        loop,
        {r.task.id: r.task for r in rollouts},
        estimator=estimator,
        seed=0,
        eos_id=EOS,
    )
    return make_trainer(
        directory, func, outcome_reward, cls=SandboxGRPOTrainer, callbacks=callbacks, **fields
    )


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_one_update_equals_trl_s_own(tmp_path, loss_type, micro_batch):
    """Same tokens through plain TRL and through our path: loss and every gradient agree to 1e-6."""
    fields = {
        "loss_type": loss_type,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 8 // micro_batch,
        "max_completion_length": 64,
    }
    theirs, ours = RecordGradients(), RecordGradients()
    rollouts = batch()
    plain = make_trainer(
        tmp_path / "trl", lambda p, t: rows_of(rollouts), given_reward, callbacks=[theirs], **fields
    )
    plain.train()
    with LoopThread() as loop:
        sandboxed = our_trainer(tmp_path / "ours", rollouts, loop, callbacks=[ours], **fields)
        sandboxed.train()
    assert sandboxed.state.log_history[0]["loss"] == pytest.approx(
        plain.state.log_history[0]["loss"], abs=1e-6
    )
    assert theirs.steps[0].keys() == ours.steps[0].keys()
    for name, gradient in theirs.steps[0].items():
        torch.testing.assert_close(ours.steps[0][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert max(float(g.abs().max()) for g in theirs.steps[0].values()) > 1e-3


def test_the_paper_s_estimator_equals_arithmetic_by_hand(tmp_path):
    """loss = −1/N Σ_i A_i Σ_t log π(t), A_i = r_i − mean of the group's other judged rewards."""
    rewards = (1.0, 0.0, None, 1.0, 0.0, 0.5, 0.0, 1.0)
    rollouts = batch(rewards)
    advantages = [1 - 0.5, 0 - 1.0, 0.0, 1 - 0.5, 0 - 0.5, 0.5 - 1 / 3, 0 - 0.5, 1 - 1 / 6]

    recorded = RecordGradients()
    with LoopThread() as loop:
        trainer = our_trainer(
            tmp_path,
            rollouts,
            loop,
            estimator="paper",
            callbacks=[recorded],
            **estimator_fields("paper"),
        )
        trainer.train()

    model = tiny_model(TOKENIZER, seed=0)
    loss = torch.zeros(())
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        trajectory = rollout.trajectory
        ids = torch.tensor([[*trajectory.prompt_ids, *trajectory.completion_ids]])
        logps = model(ids).logits[0].float().log_softmax(-1)
        start = len(trajectory.prompt_ids)
        for offset, (token, sampled) in enumerate(
            zip(trajectory.completion_ids, trajectory.action_mask, strict=True)
        ):
            if sampled:
                loss = loss - advantage * logps[start + offset - 1, token] / len(rollouts)
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(recorded.steps[0][name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_masked_tokens_get_exactly_zero_gradient(tmp_path):
    """At the last hidden states: only positions that predict a sampled token carry any gradient."""
    rollouts = batch()
    checked = []

    class Spy(SandboxGRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, share_prefixes=False, **kwargs)  # each row's positions are its own

        def compute_loss(self, model, inputs, *args, **kwargs):
            inputs = trim_padding(inputs)
            kept = {}

            def keep(module, args, output):
                output.retain_grad()
                kept["hidden"] = output

            handle = model.model.norm.register_forward_hook(keep)
            try:
                loss = super().compute_loss(model, inputs, *args, **kwargs)
            finally:
                handle.remove()
            loss.backward(retain_graph=True)
            gradient = kept["hidden"].grad.abs().sum(-1)  # (B, T), rows begin at the left
            mask = inputs["completion_mask"] * inputs["tool_mask"]
            active = mask.bool() & (inputs["advantages"] != 0)[:, None]
            full = torch.cat([torch.zeros_like(inputs["prompt_ids"]).bool(), active], 1)
            for row, prompt in enumerate(inputs["prompt_mask"].sum(-1).tolist()):
                # Position p predicts token p + 1.
                expected = full[row, inputs["prompt_ids"].size(1) - prompt + 1 :]
                length = min(expected.numel(), gradient.size(1))
                assert torch.equal(gradient[row, :length] != 0, expected[:length])
                assert not expected[length:].any()
                assert torch.count_nonzero(gradient[row, length:]) == 0
            checked.append(int((~mask.bool()).sum()))
            model.zero_grad()
            return loss

    with LoopThread() as loop:
        func = GroupRollouts(
            Prepared(rollouts),
            loop,
            {r.task.id: r.task for r in rollouts},
            estimator="trl",
            seed=0,
            eos_id=EOS,
        )
        make_trainer(tmp_path, func, outcome_reward, cls=Spy).train()
    assert sum(checked) > 20


def test_trimming_keeps_what_is_not_padding():
    inputs = {
        "prompt_ids": torch.tensor([[0, 0, 5, 6], [0, 7, 8, 9]]),
        "prompt_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]),
        "importance_sampling_ratio": torch.ones(2, 1),
        "advantages": torch.ones(2),
    }
    trimmed = trim_padding(inputs)
    assert trimmed["prompt_ids"].tolist() == [[0, 5, 6], [7, 8, 9]]
    assert trimmed["completion_ids"].tolist() == [[1, 2], [3, 0]]
    assert trimmed["tool_mask"].tolist() == [[1, 0], [1, 1]]
    assert trimmed["importance_sampling_ratio"].shape == (2, 1)
    assert inputs["completion_ids"].shape == (2, 4)


def test_rows_of_faulty_and_empty_episodes():
    """A fault has no reward and at least one token without gradient; its group's baseline knows n."""
    rollouts = [
        make_rollout("a", 1.0, seed=0),
        make_rollout("a", None, seed=1, turns=0),
        make_rollout("a", 0.0, seed=2),
        make_rollout("a", 0.0, seed=3),
    ]
    rows = to_rows([rollouts], estimator="paper", eos_id=EOS)
    assert rows["completion_ids"][1] == [EOS]
    assert rows["env_mask"][1] == [0]
    assert rows["signal"] == [1.0, None, -0.5, -0.5]  # each less the mean of the two others
    assert rows["outcome"] == [1.0, None, 0.0, 0.0]
