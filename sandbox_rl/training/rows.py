"""Rollouts in TRL's terms: what `GRPOTrainer(rollout_func=…)` takes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox_rl.training.estimator import Estimator, advantage_of
from sandbox_rl.training.groups import group_rows
from sandbox_rl.types import Rollout

__all__ = ["to_rows"]


def to_rows(
    groups: Sequence[Sequence[Rollout]], *, estimator: Estimator, eos_id: int
) -> dict[str, list[Any]]:
    """One row per rollout, in order.

    A rollout without a reward (masked by the recipe, or a fault of ours) has no advantage, and no token of it
    is marked as sampled: neither the KL term (`beta`) nor an entropy bonus has a gradient there. The row
    stays. Losses that divide by rows (grpo, sapo, luspo; dr_grpo, by rows times the longest completion)
    divide by the same number as if it had been judged; those that divide by tokens (bnpo; dapo, cispo, vespo)
    divide by the tokens that are left. TRL's `completions/…_length` count it as empty, `tokens/sampled` does
    not.

    Returns:
        `prompt_ids`, `completion_ids`, `logprobs`, `env_mask` (lists per row, the last three of
        equal length), `outcome` (the scored reward or None) and `signal`, which TRL centres within the group:
        the advantage of the paper's estimator, whose mean is 0 already, or the reward.

    Raises:
        ValueError: a rollout lacks log-probs.
    """
    rows: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "outcome", "signal")
    }
    for group in groups:
        for row in group_rows(group, advantage_of(estimator)):
            trajectory, reward = row.rollout.trajectory, row.rollout.reward.value
            # TRL needs at least one token per row: an end token that carries no gradient.
            rows["prompt_ids"].append(list(trajectory.prompt_ids) or [eos_id])
            rows["completion_ids"].append(list(trajectory.completion_ids) or [eos_id])
            rows["logprobs"].append(list(row.logprobs) or [0.0])
            mask = trajectory.action_mask if reward is not None else (0,) * len(trajectory.action_mask)
            rows["env_mask"].append(list(mask) or [0])
            rows["outcome"].append(reward)
            rows["signal"].append(row.advantage if estimator == "paper" else reward)
    return rows
