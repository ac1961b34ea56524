"""Rollouts in TRL's terms: what `GRPOTrainer(rollout_func=…)` takes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox_rl.training.estimator import Estimator, leave_one_out_scale
from sandbox_rl.types import Rollout

__all__ = ["to_rows"]


def to_rows(
    rollouts: Sequence[Rollout], *, group_size: int, estimator: Estimator, eos_id: int
) -> dict[str, list[Any]]:
    """One row per rollout, in order; groups are consecutive.

    A rollout without a reward (masked by the recipe, or a fault of ours) has no advantage, and no token of it
    is marked as sampled: neither the KL term (`beta`) nor an entropy bonus has a gradient there. The row
    stays. Losses that divide by rows (grpo, sapo, luspo; dr_grpo, by rows times the longest completion)
    divide by the same number as if it had been judged; those that divide by tokens (bnpo; dapo, cispo, vespo)
    divide by the tokens that are left. TRL's `completions/…_length` count it as empty, `tokens/sampled` does
    not.

    Returns:
        `prompt_ids`, `completion_ids`, `logprobs`, `env_mask` (lists per row, the last three of
        equal length), `outcome` (the scored reward or None) and `signal` (what TRL centres).

    Raises:
        ValueError: the rollouts do not make up whole groups, or lack log-probs.
    """
    if len(rollouts) % group_size:
        raise ValueError(f"{len(rollouts)} rollouts do not make up groups of {group_size}")
    rows: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "outcome", "signal")
    }
    for start in range(0, len(rollouts), group_size):
        group = rollouts[start : start + group_size]
        judged = sum(r.reward.value is not None for r in group)
        scale = leave_one_out_scale(judged) if estimator == "paper" else 1.0
        for rollout in group:
            trajectory = rollout.trajectory
            logprobs = trajectory.logprobs
            if logprobs is None:
                raise ValueError(
                    f"episode {trajectory.episode_id!r} has no log-probs; a policy that is trained "
                    "must return one per sampled token"
                )
            reward = rollout.reward.value
            # TRL needs at least one token per row: an end token that carries no gradient.
            rows["prompt_ids"].append(list(trajectory.prompt_ids) or [eos_id])
            rows["completion_ids"].append(list(trajectory.completion_ids) or [eos_id])
            rows["logprobs"].append(list(logprobs) or [0.0])
            mask = trajectory.action_mask if reward is not None else (0,) * len(trajectory.action_mask)
            rows["env_mask"].append(list(mask) or [0])
            rows["outcome"].append(reward)
            rows["signal"].append(None if reward is None else reward * scale)
    return rows
