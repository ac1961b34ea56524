"""A rollout as the loss should see it: the audit's side of the comparison, from the episodes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

import numpy as np

from sandbox_rl.types import Rollout, StopReason

Advantages = Callable[[Sequence[float | None]], Sequence[float | None]]
"""Rewards of a group, None where not judged → advantages, None there."""

ZERO = 2e-3
"""Advantages below this are zero: TRL divides rounding errors of equal rewards by 1e-4."""


def as_expected(advantage: float, expected: float) -> bool:
    """Whether an advantage is the expected one but for rounding and for what TRL adds to deviations."""
    return abs(advantage - expected) <= ZERO + 0.01 * abs(expected)


class TokenClass(StrEnum):
    """What became of a token; each is a column `samples/NAME` of the metrics, as a share of what was sampled.

    `observed` tokens were not sampled and are shown beside them, as a share of them.
    """

    TRAINED = "trained"
    ZERO_ADVANTAGE = "zero_advantage"  # the group's rewards are all equal, or this one equals their mean
    OVERLONG = "overlong"  # a budget ended the episode and the recipe masks those
    TRUNCATED = "truncated"  # TRL's mask_truncated_completions
    INFRA_FAULT = "infra_fault"
    NOT_JUDGED = "not_judged"
    REFILLED = "refilled"  # another group took this one's place
    CUT = "cut"  # of a group that was cancelled, to be sampled again
    UNUSED = "unused"  # handed to the trainer and never in a loss: an alarm, or the run was ended
    OBSERVED = "observed"


@dataclass(frozen=True, slots=True)
class ExpectedRow:
    """A rollout as the loss should see it.

    Args:
        mask: what the policy sampled; of a row that is not `judged` the loss should see none of it.
        sign: of the advantage; `advantage` itself where the rewards of the group determine it.
    """

    episode: str
    ids: np.ndarray[Any, np.dtype[np.int64]]
    mask: np.ndarray[Any, np.dtype[np.bool_]]
    sign: int
    judged: bool
    expected: TokenClass
    advantage: float | None = None

    @property
    def tokens(self) -> int:
        return int(self.mask.sum())


def prompt_key(ids: np.ndarray[Any, Any]) -> bytes:
    """What rows of one prompt have in common; `ids` without padding, shape (P,)."""
    return np.ascontiguousarray(ids, dtype=np.int64).tobytes()


def expected_rows(
    group: Sequence[Rollout], advantages: Advantages | None = None
) -> list[tuple[ExpectedRow, bytes]]:
    """What the loss should see of a group: who counts, and on which side of the mean each reward lies."""
    rewards = [rollout.reward.value for rollout in group]
    due = [None] * len(group) if advantages is None else advantages(rewards)
    judged = [reward for reward in rewards if reward is not None]
    mean = fmean(judged) if judged else 0.0
    rows = []
    for rollout, advantage in zip(group, due, strict=True):
        trajectory, reward = rollout.trajectory, rollout.reward
        sign = 0
        if reward.value is not None and len(set(judged)) > 1:
            sign = int(np.sign(reward.value - mean)) if abs(reward.value - mean) > 1e-6 else 0
        if reward.value is not None:
            expected = TokenClass.TRAINED if sign else TokenClass.ZERO_ADVANTAGE
        elif reward.masked:
            expected = TokenClass.OVERLONG
        elif trajectory.stop is StopReason.INFRA_FAULT:
            expected = TokenClass.INFRA_FAULT
        else:
            expected = TokenClass.NOT_JUDGED
        row = ExpectedRow(
            trajectory.episode_id,
            np.array(trajectory.completion_ids, dtype=np.int64),
            np.array(trajectory.action_mask, dtype=bool),
            sign,
            reward.value is not None,
            expected,
            advantage,
        )
        rows.append((row, prompt_key(np.array(trajectory.prompt_ids, dtype=np.int64))))
    return rows
