"""Pass-through blocks: every mistake is one line that names the key."""

from __future__ import annotations

import pytest
import torch
from trl import GRPOConfig

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.fields import checked_fields
from sandbox_rl.training.grpo import grpo_config


def make(tmp_path, **block):
    defaults = {"per_device_train_batch_size": 8, "num_generations": 4}
    return grpo_config(
        defaults | block,
        checkpoints=tmp_path,
        name="x",
        seed=3,
        estimator="paper",
        max_tokens=512,
        dtype=torch.float32,
    )


def test_our_defaults_the_estimator_and_the_block_in_that_order(tmp_path):
    args = make(tmp_path)
    assert (args.loss_type, args.epsilon_high, args.beta) == ("luspo", 0.28, 0.0)
    assert (args.seed, args.max_completion_length) == (3, 512)
    assert make(tmp_path, loss_type="dapo").loss_type == "dapo"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 1e-6),
        ("learning_rate", 1),
        ("max_steps", 7),
        ("beta", 0.04),
        ("num_iterations", 2),
        ("delta", 1.5),
        ("scale_rewards", "batch"),
        ("lr_scheduler_type", "cosine"),
        ("max_grad_norm", 0.2),
        ("adam_beta2", 0.95),
        ("weight_decay", 0.01),
        ("mask_truncated_completions", True),
        ("importance_sampling_level", "sequence"),
    ],
)
def test_any_field_of_trl_is_taken(tmp_path, field, value):
    assert getattr(make(tmp_path, **{field: value}), field) == value


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"learning_rat": 1e-6}, "unknown key 'grpo.learning_rat'.*did you mean 'learning_rate'"),
        ({"learning_rate": "fast"}, "'grpo.learning_rate': 'fast', expected float"),
        ({"max_steps": 2.5}, "'grpo.max_steps': 2.5, expected int"),
        ({"max_steps": True}, "'grpo.max_steps': True, expected int"),
        ({"seed": 1}, "'grpo.seed' = 1 belongs elsewhere: set seed"),
        ({"use_vllm": True}, "belongs elsewhere"),
        ({"fsdp": "full_shard"}, "belongs elsewhere: set launch.config=fsdp2"),
        ({"deepspeed": "zero.json"}, "belongs elsewhere: set launch.config=zero3"),
        ({"per_device_train_batch_size": 6}, "splits groups of num_generations=4"),
        ({"num_generations": 1}, "grpo.num_generations: 1, expected at least 2"),
        ({"temperature": 0.0}, "grpo.temperature: 0.0, expected more than 0"),
        ({"top_p": 0.9}, "biases the gradient"),
        ({"top_k": 20}, "biases the gradient"),
        ({"save_total_limit": 1}, "expected at least 2"),
        ({"num_iterations": 4, "save_steps": 6}, "expected a multiple of 4"),
    ],
)
def test_what_is_wrong_is_reported_in_one_line(tmp_path, block, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **block)


def test_the_class_s_own_refusal_is_passed_on():
    with pytest.raises(ConfigError, match="grpo: GRPOConfig refuses these values"):
        checked_fields(GRPOConfig, "grpo", {"loss_type": "grpo", "num_generations": 1, "bf16": False})
