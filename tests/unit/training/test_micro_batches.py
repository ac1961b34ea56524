"""Rows in parts: the plan, and that the parts' losses and gradients add up to the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.micro_batches import loss_share, plan_parts
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import EOS, RecordGradients, make_rollout, make_trainer
from tests.smoke.test_update import Prepared


def test_neighbours_in_length_share_a_part():
    assert plan_parts([10, 100, 12, 90, 11], 200) == [[1, 3], [2, 4, 0]]
    assert plan_parts([10, 300, 12], 200) == [[1], [2, 0]]
    assert plan_parts([10, 300, 12], None) == [[0, 1, 2]]


def test_longer_rows_elsewhere_make_parts_smaller_here():
    assert plan_parts([9, 8, 7, 6], 100) == [[0, 1, 2, 3]]
    assert plan_parts([6, 7, 8, 9], 100, bounds=[90, 50, 50, 6]) == [[3], [2, 1], [0]]


rows = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(1, 50), min_size=n, max_size=n)] * 2)
)


@given(rows, st.integers(1, 200) | st.none())
def test_every_row_is_in_one_part_and_processes_take_as_many_at_a_time(processes, budget):
    bounds = [
        max(pair) for pair in zip(*(sorted(lengths, reverse=True) for lengths in processes), strict=True)
    ]
    plans = [plan_parts(lengths, budget, bounds=bounds) for lengths in processes]
    assert [len(part) for part in plans[0]] == [len(part) for part in plans[1]]
    for lengths, parts in zip(processes, plans, strict=True):
        assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
        assert all(
            len(part) == 1 or budget is None or len(part) * max(lengths[row] for row in part) <= budget
            for part in parts
        )


def update(directory, rollouts, *, budget=None, share=False, **fields):
    """The gradients of one update, its trainer, and the shape of what each forward saw."""
    gradients, rows = RecordGradients(), []

    class Counting(SandboxGRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, micro_batch_tokens=budget, share_prefixes=share, **kwargs)
            self.model.model.register_forward_pre_hook(
                lambda _, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
            )

    with LoopThread() as loop:
        tasks = {r.task.id: r.task for r in rollouts}
        func = GroupRollouts(Prepared(rollouts), loop, tasks, estimator="trl", seed=0, eos_id=EOS)
        trainer = make_trainer(directory, func, outcome_reward, cls=Counting, callbacks=[gradients], **fields)
        trainer.train()
    return gradients.steps[0], trainer, rows


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo", "luspo", "cispo", "sapo", "vespo"])
def test_the_gradient_of_the_parts_is_that_of_the_whole(tmp_path, loss_type, accumulation):
    rollouts = [
        make_rollout("a" if i < 4 else "b", reward, seed=i, turns=1 + i % 4, length=4 + 5 * (i % 3))
        for i, reward in enumerate((1.0, 0.0, 0.25, 1.0, 0.0, 0.5, 0.0, 1.0))
    ]
    fields = {
        "loss_type": loss_type,
        "importance_sampling_level": "token",
        "max_completion_length": 64,
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    expected, whole, _ = update(tmp_path / "whole", rollouts, **fields)
    found, parts, rows = update(tmp_path / "parts", rollouts, budget=60, **fields)
    assert max(shape[0] for shape in rows) < 8 // accumulation
    assert whole.state.log_history[0]["loss"] == pytest.approx(parts.state.log_history[0]["loss"], abs=1e-6)
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 + 1e-5 * gradient.abs().max(), name
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4


def test_common_beginnings_are_computed_once_in_parts_too(tmp_path):
    rollouts = [
        make_rollout("a" if i < 4 else "b", float(i % 2), seed=i, turns=1 + i % 4, length=3) for i in range(8)
    ]
    fields = {"max_completion_length": 64, "num_iterations": 2, "max_steps": 2}  # old log-probs come first
    expected, _, padded = update(tmp_path / "whole", rollouts, **fields)
    found, _, packed = update(tmp_path / "parts", rollouts, budget=60, share=True, **fields)
    assert len(packed) > 2
    assert all(shape[0] == 1 and shape[1] <= 60 for shape in packed)
    assert sum(shape.numel() for shape in packed) < 0.7 * sum(shape.numel() for shape in padded)
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 + 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"top_entropy_quantile": 0.5}, "top_entropy_quantile=0.5"), ({"entropy_coef": 0.1}, "entropy_coef")],
)
def test_a_loss_that_couples_rows_is_refused(tmp_path, fields, named):
    with pytest.raises(ConfigError, match=f"micro_batch_tokens: 60, expected none with grpo.{named}"):
        update(tmp_path, [make_rollout("a", 1.0, seed=0)], budget=60, **fields)


def test_an_unknown_loss_has_no_share():
    with pytest.raises(ValueError, match="'new'"):
        loss_share("new", {}, {})
