"""Facts about TRL 1.16 that `sandbox_rl.training` stands on. A failure here is the upgrade alarm."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
import trl
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.async_grpo import AsyncGRPOConfig

from sandbox_rl.training import views
from tests.smoke.support import EOS, given_reward, make_rollout, make_trainer, rows_of


def batch(rewards=(1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)):
    return [make_rollout("a" if i < 4 else "b", reward, seed=i) for i, reward in enumerate(rewards)]


def captured_inputs(trainer: GRPOTrainer) -> list[dict]:
    """What reaches `compute_loss`, per micro-batch."""
    seen: list[dict] = []
    compute = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        seen.append(inputs)
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    return seen


def test_the_version_is_the_one_that_was_read():
    assert trl.__version__.startswith("1.16."), "read tests/smoke again before raising the pin"


def attributes(view) -> set[str]:
    found: set[str] = set()
    for part in view.__mro__:
        found |= set(vars(part).get("__annotations__", ()))
        found |= {name for name, value in vars(part).items() if isinstance(value, property)}
    return found


def test_what_we_read_of_the_trainer_is_there(tmp_path):
    """The Protocols that stand for an untyped trainer would not notice an attribute that is gone."""
    trainer = make_trainer(tmp_path, lambda p, t: rows_of(batch()), given_reward)
    for view, held in (
        (views.TrainerView, trainer),
        (views.LossView, trainer),
        (views.PrecisionView, trainer),
        (views.SyncArgs, trainer.args),
        (views.AsyncArgs, AsyncGRPOConfig),
        (views.StateView, trainer.state),
    ):
        assert attributes(view), view.__name__
        assert not {name for name in attributes(view) if not hasattr(held, name)}, view.__name__


def test_the_hooks_that_are_set_are_the_ones_that_trl_reads(tmp_path):
    """It publishes once per step before it asks for rollouts, through what `trl_hooks.py` puts in place."""
    called = []

    def rollout_func(prompts, trainer):
        called.append("rollouts")
        return rows_of(batch())

    trainer = make_trainer(tmp_path, rollout_func, given_reward, max_steps=2)
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: called.append("weights"))
    trainer.train()
    assert called == ["weights", "rollouts"] * 2


def test_prompts_arrive_repeated_in_whole_groups(tmp_path):
    calls = []

    def rollout_func(prompts, trainer):
        calls.append(list(prompts))
        return rows_of(batch())

    make_trainer(tmp_path, rollout_func, given_reward).train()
    assert calls == [["a"] * 4 + ["b"] * 4]


def test_the_number_of_rows_is_not_checked_by_trl(tmp_path):
    """Seven rows for eight prompts train in silence: so `GroupRollouts` checks it."""

    def rollout_func(prompts, trainer):
        rows = {key: values[:7] for key, values in rows_of(batch()).items()}
        del rows["reward"]
        return rows

    trainer = make_trainer(tmp_path, rollout_func, lambda prompts, **_: [0.0] * len(prompts))
    trainer.train()
    assert trainer.state.global_step == 1


def test_missing_keys_are_named(tmp_path):
    def rollout_func(prompts, trainer):
        rows = rows_of(batch())
        del rows["completion_ids"]
        return rows

    with pytest.raises(ValueError, match="completion_ids"):
        make_trainer(tmp_path, rollout_func, given_reward).train()


def test_extra_columns_reach_the_reward_function_with_log_metric(tmp_path):
    seen = {}

    def reward(prompts, reward, log_metric, **columns):
        seen["reward"] = reward
        log_metric("ours", 3.0)
        return reward

    trainer = make_trainer(tmp_path, lambda p, t: rows_of(batch()), reward)
    trainer.train()
    assert seen["reward"] == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert any(entry.get("ours") == 3.0 for entry in trainer.state.log_history)


def test_a_reward_of_none_leaves_the_baseline_and_gets_no_advantage(tmp_path):
    trainer = make_trainer(
        tmp_path,
        lambda p, t: rows_of(batch((1.0, 0.0, None, 0.5, 0.0, 0.0, 0.0, 1.0))),
        given_reward,
        scale_rewards="none",
    )
    seen = captured_inputs(trainer)
    trainer.train()
    advantages = sorted(torch.cat([i["advantages"] for i in seen]).tolist())
    expected = sorted([0.5, -0.5, 0.0, 0.0, -0.25, -0.25, -0.25, 0.75])
    assert advantages == pytest.approx(expected, abs=1e-6)


def test_env_mask_becomes_the_tool_mask_and_padding_is_out(tmp_path):
    rollouts = batch()
    trainer = make_trainer(tmp_path, lambda p, t: rows_of(rollouts), given_reward)
    seen = captured_inputs(trainer)
    trainer.train()
    trained = sum(int((i["completion_mask"] * i["tool_mask"]).sum()) for i in seen)
    assert trained == sum(sum(r.trajectory.action_mask) for r in rollouts)


def test_an_empty_completion_breaks_trl(tmp_path):
    def rollout_func(prompts, trainer):
        rows = rows_of(batch())
        for key in ("completion_ids", "logprobs", "env_mask"):
            rows[key][0] = []
        return rows

    with pytest.raises(IndexError):
        make_trainer(tmp_path, rollout_func, given_reward).train()


def test_an_all_zero_mask_trains_with_zero_loss(tmp_path):
    def rollout_func(prompts, trainer):
        rows = rows_of(batch())
        rows["env_mask"] = [[0] * len(mask) for mask in rows["env_mask"]]
        return rows

    trainer = make_trainer(tmp_path, rollout_func, given_reward)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0.0
    assert trainer.state.log_history[0]["grad_norm"] == 0.0


def test_truncation_is_judged_by_the_last_id(tmp_path):
    rollouts = batch()
    rows = rows_of(rollouts)
    assert all(ids[-1] == EOS for ids in rows["completion_ids"])
    rows["completion_ids"][0][-1] = 11
    trainer = make_trainer(tmp_path, lambda p, t: rows, given_reward)
    trainer.train()
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == pytest.approx(1 / 8)


def test_rows_are_padded_to_the_longest_of_the_generation_batch(tmp_path):
    """The reason for `trim_padding`."""
    rollouts = [make_rollout("a", 1.0, seed=i, turns=1) for i in range(7)]
    rollouts.append(make_rollout("b", 0.0, seed=7, turns=6, length=12))
    trainer = make_trainer(
        tmp_path,
        lambda p, t: rows_of(rollouts),
        given_reward,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )
    seen = captured_inputs(trainer)
    trainer.train()
    longest = max(len(r.trajectory.completion_ids) for r in rollouts)
    assert {tuple(i["completion_ids"].shape) for i in seen} == {(1, longest)}


@pytest.mark.parametrize(
    "field",
    ["loss_type", "importance_sampling_level", "scale_rewards", "epsilon_high", "beta", "num_generations"],
)
def test_the_fields_that_we_set_exist(field):
    assert field in inspect.signature(GRPOConfig.__init__).parameters
