"""Rules and a judge in one reward."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox_rl.rewards.base import JUDGE
from sandbox_rl.types import Reward

__all__ = ["mixed"]


def mixed(ruled: Reward, judged: Reward, share: float, parts: Mapping[str, float]) -> Reward:
    """The weighted mean of what rules and a judge say; None where the judge gave nothing.

    Parts: those of both, `parts`, and `judge`, the judge's value. Where a rule stood in for a judge that was
    down, `judge_fallback` is among them and the detail names the rule.

    Args:
        ruled: its value is not None.
        share: of the rules in the weights, in (0, 1).
    """
    if judged.value is None or ruled.value is None:
        return Reward(None, detail=judged.detail)
    value = share * ruled.value + (1 - share) * judged.value
    return Reward(
        value,
        {**parts, **ruled.parts, **judged.parts, JUDGE: judged.value},
        "; ".join(filter(None, (ruled.detail, judged.detail))),
    )
