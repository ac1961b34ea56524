"""The one rule of what an episode is worth, while it is rolled out and when it is scored again."""

from __future__ import annotations

from sandbox_rl.rewards.base import Scores
from sandbox_rl.rollout.settings import OverlongPolicy, RolloutSettings
from sandbox_rl.types import Answer, Reward, StopReason, Task


async def judge(
    scoring: Scores,
    task: Task,
    stop: StopReason,
    answer: Answer,
    *,
    settings: RolloutSettings,
    overlong: OverlongPolicy | None = None,
    fault: str = "",
) -> Reward:
    """The reward of an episode.

    A fault of ours has none, whatever lies at the place of the answer. What a budget ended is worth what the
    settings say. All else is scored.

    Args:
        overlong: replaces what `settings` say of budgets, time-outs included.
        fault: what went wrong, when it was ours.
    """
    if stop is StopReason.INFRA_FAULT:
        return Reward(None, detail=fault)
    if stop.is_overlong:
        timed_out = stop is StopReason.TIMEOUT
        choice = overlong or (settings.timed_out if timed_out else settings.overlong)
        detail = f"ended by {stop.value}"
        if choice == "zero":
            return Reward(0.0, detail=detail)
        if choice == "mask":
            return Reward(None, detail=detail, masked=True)
    return await scoring.score(task, answer)
