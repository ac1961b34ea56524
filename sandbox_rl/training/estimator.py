"""The paper's policy-gradient estimator, said in TRL's words.

arXiv 2601.16206 trains with a leave-one-out baseline, the sum of token losses per sequence, the mean
over sequences, clip 0.2 low / 0.28 high and no KL term. In TRL 1.16 that is:

- `loss_type="luspo"` with `importance_sampling_level="token"`: the mean over sequences of the sum over
  tokens of the clipped surrogate. (LUSPO itself is the same sum with sequence-level ratios.)
- `scale_rewards="none"`: advantage = reward − group mean. The leave-one-out advantage
  r_i − mean_{j≠i} r_j equals n/(n−1) of that, n being the judged rollouts of the group; the factor is
  applied to the reward (`leave_one_out_scale`), exactly for groups with missing rewards too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sandbox_rl.training.samples import advantages

__all__ = ["Estimator", "advantage_rule", "estimator_fields", "leave_one_out_scale"]

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


def leave_one_out_scale(judged: int) -> float:
    """n/(n−1) for a group with n judged rollouts; 1 where there is no other to compare with."""
    return judged / (judged - 1) if judged > 1 else 1.0


def advantage_rule(
    estimator: Estimator, args: Any
) -> Callable[[Sequence[float | None]], Sequence[float | None]] | None:
    """What TRL makes of a group's rewards by these settings; None where it depends on more than the group."""
    one_reward = args.reward_weights is None and args.multi_objective_aggregation == "sum_then_normalize"
    kinds: Mapping[str, Literal["dr_grpo", "grpo"]] = {"none": "dr_grpo", "group": "grpo"}
    if not one_reward or args.scale_rewards not in kinds:
        return None
    kind = kinds[args.scale_rewards]

    def rule(rewards: Sequence[float | None]) -> Sequence[float | None]:
        judged = sum(reward is not None for reward in rewards)
        scale = leave_one_out_scale(judged) if estimator == "paper" else 1.0
        return advantages([None if r is None else r * scale for r in rewards], kind)

    return rule
