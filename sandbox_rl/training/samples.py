"""Groups of rollouts in the terms of TRL's asynchronous trainer, which leaves the advantage to us."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from sandbox_rl.types import Rollout

__all__ = ["Advantage", "advantages", "to_samples"]

Advantage = Literal["grpo", "dr_grpo", "rloo"]

EPSILON = 1e-4
"""Added to the standard deviation, as TRL's synchronous trainer does."""


def advantages(rewards: Sequence[float | None], kind: Advantage) -> list[float | None]:
    """The advantage of each rollout within its group; None where there is no reward.

    `grpo`: (r - mean) / (std + 1e-4), std unbiased (arXiv 2402.03300). `dr_grpo`: r - mean
    (arXiv 2503.20783). `rloo`: r minus the mean of the others, (r - mean) * n / (n - 1)
    (arXiv 2402.14740); the paper's baseline. n counts judged rollouts only.
    """
    judged = [r for r in rewards if r is not None]
    if len(judged) < 2:
        return [None if r is None else 0.0 for r in rewards]
    mean = statistics.fmean(judged)
    scale = {
        "grpo": lambda: 1 / (statistics.stdev(judged) + EPSILON),
        "dr_grpo": lambda: 1.0,
        "rloo": lambda: len(judged) / (len(judged) - 1),
    }[kind]()
    return [None if r is None else (r - mean) * scale for r in rewards]


def to_samples(group: Sequence[Rollout], *, group_id: int, kind: Advantage) -> list[RolloutSample]:
    """The samples of a group that can be trained on: judged, and with at least one sampled token.

    A sample carries the oldest weight version that any of its turns was sampled with.

    Raises:
        ValueError: a rollout without log-probs.
    """
    samples = []
    for rollout, advantage in zip(group, advantages([r.reward.value for r in group], kind), strict=True):
        trajectory = rollout.trajectory
        if advantage is None or not any(trajectory.action_mask):
            continue
        if trajectory.logprobs is None:
            raise ValueError(f"episode {trajectory.episode_id!r} has no log-probs to train on")
        before = len(trajectory.prompt_ids)
        samples.append(
            RolloutSample(
                prompt=[{"role": "user", "content": rollout.task.prompt}],
                completion=[],
                input_ids=np.array([*trajectory.prompt_ids, *trajectory.completion_ids], dtype=np.int64),
                completion_mask=np.array([0] * before + list(trajectory.action_mask), dtype=np.int64),
                old_log_probs=np.array([0.0] * before + list(trajectory.logprobs), dtype=np.float32),
                advantage=advantage,
                model_version=min(turn.action.weight_version for turn in trajectory.turns),
                group_id=group_id,
                metrics={"reward": float(rollout.reward.value or 0.0)},
            )
        )
    return samples
