"""Rollouts and the paper's policy-gradient estimator, said in TRL's words.

arXiv 2601.16206 trains with a leave-one-out baseline, the sum of token losses per sequence, the mean
over sequences, clip 0.2 low / 0.28 high and no KL term. In TRL 1.16 that is:

- `loss_type="luspo"` with `importance_sampling_level="token"`: the mean over sequences of the sum over
  tokens of the clipped surrogate. (LUSPO itself is the same sum with sequence-level ratios.)
- `scale_rewards="none"`: TRL's advantage is what it is handed minus the group's mean. It is handed the
  leave-one-out advantage r_i − mean_{j≠i} r_j, whose mean is 0 (`groups.advantages`), exactly for groups
  with missing rewards too. TRL's own reward figures are n/(n−1) times too large then: they are replaced by
  those of what was scored. Nothing that is trained on is touched by that.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any, Literal

import torch
from trl.trainer.utils import nanstd

from sandbox_rl.audit.rows import Advantages
from sandbox_rl.training.groups import Advantage, advantages, group_rows
from sandbox_rl.training.views import RewardArgs
from sandbox_rl.types import Rollout

Estimator = Literal["paper", "trl"]
"""`paper`: as above. `trl`: the `grpo:` block alone decides."""


def estimator_fields(estimator: Estimator) -> Mapping[str, Any]:
    """The `trl.GRPOConfig` fields of an estimator; the recipe's `grpo:` block may still replace them."""
    if estimator == "trl":
        return {}
    return {
        "loss_type": "luspo",
        "importance_sampling_level": "token",
        "scale_rewards": "none",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
    }


def advantage_of(estimator: Estimator) -> Advantage:
    """The paper's leave-one-out baseline, or group-normalised rewards.

    TRL's synchronous trainer decides by itself with `trl`, as its `scale_rewards` says.
    """
    return "rloo" if estimator == "paper" else "grpo"


def advantage_rule(estimator: Estimator, args: RewardArgs) -> Advantages | None:
    """What TRL makes of a group's rewards by these settings; None where it depends on more than the group."""
    one_reward = args.reward_weights is None and args.multi_objective_aggregation == "sum_then_normalize"
    kinds: Mapping[str, Literal["dr_grpo", "grpo"]] = {"none": "dr_grpo", "group": "grpo"}
    if not one_reward or args.scale_rewards not in kinds:
        return None
    kind = kinds[args.scale_rewards]

    def rule(rewards: Sequence[float | None]) -> Sequence[float | None]:
        handed = advantages(rewards, "rloo") if estimator == "paper" else rewards
        return advantages(handed, kind)

    return rule


def correct_reward_metrics(
    metrics: MutableMapping[str, MutableSequence[float]],
    logged: MutableSequence[float],
    outcomes: torch.Tensor,
    *,
    name: str,
    group_size: int,
) -> None:
    """Replace the newest reward figures by those of `outcomes`.

    Args:
        metrics: TRL's lists; the last entry of each is of these rows.
        logged: the reward column of TRL's table of completions; its last rows are these.
        outcomes: the scored rewards of all processes' rows, NaN where there is none, shape (N,).
        name: of the reward function.
    """
    mean, deviation = torch.nanmean(outcomes).item(), nanstd(outcomes).item()
    of_groups = nanstd(outcomes.view(-1, group_size), dim=1)
    equal = torch.isclose(of_groups, torch.zeros_like(of_groups)).float().mean().item()
    found = {
        "reward": mean,
        "reward_std": deviation,
        "frac_reward_zero_std": equal,
        f"rewards/{name}/mean": mean,
        f"rewards/{name}/std": deviation,
    }
    for key, value in found.items():
        metrics[key][-1] = value
    rows = min(len(logged), len(outcomes))
    for place, value in enumerate(outcomes[len(outcomes) - rows :].tolist(), len(logged) - rows):
        logged[place] = value


def outcomes_of(inputs: list[dict[str, Any]]) -> torch.Tensor | None:
    """The scored rewards of a process's N rows, NaN for None; None where the rollouts do not tell them."""
    if not inputs or "outcome" not in inputs[0]:
        return None
    rewards = [float("nan") if row["outcome"] is None else row["outcome"] for row in inputs]
    return torch.tensor(rewards, dtype=torch.float32)


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
