"""The paper's policy-gradient estimator, said in TRL's words.

arXiv 2601.16206 trains with a leave-one-out baseline, the sum of token losses per sequence, the mean
over sequences, clip 0.2 low / 0.28 high and no KL term. In TRL 1.16 that is:

- `loss_type="luspo"` with `importance_sampling_level="token"`: the mean over sequences of the sum over
  tokens of the clipped surrogate. (LUSPO itself is the same sum with sequence-level ratios.)
- `scale_rewards="none"`: TRL's advantage is what it is handed minus the group's mean. It is handed the
  leave-one-out advantage r_i − mean_{j≠i} r_j, whose mean is 0 (`groups.advantages`), exactly for groups
  with missing rewards too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sandbox_rl.training.groups import Advantage, advantages

__all__ = ["Estimator", "advantage_of", "advantage_rule", "estimator_fields"]

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
        handed = advantages(rewards, "rloo") if estimator == "paper" else rewards
        return advantages(handed, kind)

    return rule
