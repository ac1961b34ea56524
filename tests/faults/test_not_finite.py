"""FI-18: a NaN loss leaves its update out, keeps what it was computed from, and ends the run in time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from sandbox_rl.errors import InfraFault
from sandbox_rl.training.base_trainer import SKIPPED
from sandbox_rl.training.checkpoints import damage_of
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.async_support import PlayedRollouts, make_async_trainer
from tests.smoke.support import given_reward, make_rollout, make_trainer, rows_of


class Weights(TrainerCallback):
    """The weights and what the optimizer knows after each update; before the first at 0."""

    def __init__(self):
        self.after = {}

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.note(state.global_step, model, optimizer)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.note(state.global_step, model, optimizer)

    def note(self, step, model, optimizer):
        moments = [value for entry in optimizer.state.values() for value in entry.values()]
        self.after[step] = [t.detach().clone() for t in (*model.parameters(), *moments)]

    def changed(self, step):
        """Whether the update after that many changed anything."""
        before, after = self.after[step], self.after[step + 1]
        return len(before) != len(after) or not all(map(torch.equal, before, after))


def with_faults(cls, steps, value):
    class Faulty(cls):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * value if self.state.global_step in steps else loss

    return Faulty


def sync_trainer(directory, steps, value, weights):
    rows = [make_rollout("ab"[i // 4], float(i % 2), seed=i) for i in range(8)]
    return make_trainer(
        directory,
        lambda prompts, _: rows_of(rows),
        given_reward,
        cls=with_faults(SandboxGRPOTrainer, steps, value),
        tasks=["a", "b"] * 6,
        callbacks=[weights],
        max_steps=5,
        learning_rate=1e-3,
        gradient_accumulation_steps=1,
    )


def async_trainer(directory, steps, value, weights):
    trainer = make_async_trainer(directory, PlayedRollouts(), callbacks=[weights], max_steps=5)
    trainer.__class__ = with_faults(type(trainer), steps, value)
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [sync_trainer, async_trainer])
def test_an_update_that_is_not_finite_changes_nothing_and_the_next_ones_go_on(tmp_path, make, value):
    weights = Weights()
    trainer = make(tmp_path, {1, 3}, value, weights)
    trainer.train()
    assert trainer.state.global_step == 5
    assert [weights.changed(step) for step in range(4)] == [True, False, True, False]
    kept = sorted((Path(trainer.args.output_dir) / SKIPPED).iterdir())
    assert [path.name for path in kept] == ["update-000001-0.pt", "update-000003-0.pt"]
    (batch,) = torch.load(kept[0], weights_only=False)
    assert any("ids" in name for name in batch)
    counts = [entry.get("update/left_out") for entry in trainer.state.log_history if "loss" in entry]
    assert counts == [None, 1.0, None, 1.0, None]


def test_three_in_a_row_end_the_run_with_the_weights_before(tmp_path):
    weights = Weights()
    trainer = sync_trainer(tmp_path, {2, 3, 4}, float("nan"), weights)
    with pytest.raises(InfraFault, match="3 updates in a row") as raised:
        trainer.train()
    assert raised.value.agreed
    trainer.keep_last_update()
    assert damage_of(tmp_path / "checkpoint-4") is None
    kept = trainer.model.state_dict()
    assert all(value.isfinite().all() for value in kept.values())
    assert not weights.changed(2)
