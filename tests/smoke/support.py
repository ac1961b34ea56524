"""A tiny real model under the real TRL, and hand-made rollouts to feed it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    Reward,
    Rollout,
    StopReason,
    Task,
    Trajectory,
    Turn,
)

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
CARD = {"recipe": "x", "base_model": "tiny", "datasets": [], "results": {}}
"""What an export's card is told."""


def saved_model(directory: Path) -> str:
    """Where a tiny model lies: a run that starts from it needs no warm-up, though it solves nothing."""
    tiny_model(TOKENIZER).save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return str(directory)


def make_rollout(
    task_id: str, reward: float | None, *, seed: int, turns: int = 2, length: int = 6, observed: int = 4
) -> Rollout:
    """Random tokens in the shape of an episode, the prompt of its task; log-probs of nobody in particular."""
    rng, prompt = random.Random(seed), random.Random(task_id)

    def ids(count: int, rng: random.Random = rng) -> tuple[int, ...]:
        return tuple(rng.randrange(10, 200) for _ in range(count))

    made = []
    for turn in range(turns):
        sampled = (*ids(rng.randrange(1, length)), EOS)
        made.append(
            Turn(
                Action(sampled, tuple(-1.0 for _ in sampled), "stop"),
                observation_ids=ids(observed) if turn + 1 < turns else (),
            )
        )
    trajectory = Trajectory(
        task_id=task_id,
        prompt_ids=ids(prompt.randrange(5, 9), prompt),
        turns=tuple(made),
        stop=StopReason.SUBMITTED if reward is not None else StopReason.INFRA_FAULT,
        answer=Answer(AnswerStatus.OK, "42"),
        episode_id=f"{task_id}-{seed}",
    )
    return Rollout(trajectory, Reward(reward), Task(id=task_id, prompt="?", answer="42"))


class RecordGradients(TrainerCallback):
    """Keeps the gradients as they are right before the optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
        )


def make_trainer(
    directory: Path,
    rollout_func: Callable[..., dict[str, Any]],
    reward_func: Callable[..., Any],
    *,
    cls: type[GRPOTrainer] = GRPOTrainer,
    tasks: Sequence[str] = ("a", "b"),
    callbacks: Sequence[TrainerCallback] = (),
    seed: int = 0,
    parts: Mapping[str, Any] | None = None,
    **fields: Any,
) -> GRPOTrainer:
    """A trainer over one generation batch of whole groups, from the same initial weights each time.

    Args:
        parts: further arguments of `cls`; `fields` are those of its settings.
    """
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_steps": 1,
        "max_grad_norm": 1e9,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        "seed": seed,
    }
    return cls(
        model=tiny_model(TOKENIZER, seed=seed),
        args=GRPOConfig(str(directory), **(defaults | fields)),
        train_dataset=Dataset.from_dict({"prompt": list(tasks)}),
        processing_class=TOKENIZER,
        reward_funcs=reward_func,
        rollout_func=rollout_func,
        callbacks=list(callbacks),
        **(parts or {}),
    )


def rows_of(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    """Plain rows for TRL's `rollout_func`, made without the code under test."""
    return {
        "prompt_ids": [list(r.trajectory.prompt_ids) for r in rollouts],
        "completion_ids": [list(r.trajectory.completion_ids) for r in rollouts],
        "logprobs": [list(r.trajectory.logprobs or ()) for r in rollouts],
        "env_mask": [list(r.trajectory.action_mask) for r in rollouts],
        "reward": [r.reward.value for r in rollouts],
    }


def given_reward(prompts: Sequence[str], reward: Sequence[float | None], **_: Any) -> list[float | None]:
    """Hands on the reward column."""
    return list(reward)
