"""Groups of rollouts as asynchronous updates take them: whole, with advantages and each token's version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandbox_rl.training.groups import Advantage, GroupRow, group_rows, teaches
from sandbox_rl.types import Rollout

__all__ = ["FinishedGroup", "LeftOut", "Sample", "failed_group", "finished_group"]


class LeftOut(StrEnum):
    """Why a sample of a finished group is in no update."""

    NOT_JUDGED = "not_judged"  # our fault: no reward
    MASKED = "masked"  # by the recipe's choice: a budget ended the episode
    NO_TOKENS = "no_tokens"  # nothing was sampled
    EQUAL_REWARDS = "equal_rewards"  # of the whole group, with curriculum.refill_rounds
    USED_BEFORE = "used_before"  # in an update before the checkpoint that the run was resumed from


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode to train on. All arrays have the shape (T,), prompt and completion together.

    Args:
        index: place within its group.
        completion_mask: 1 where the policy sampled the token.
        old_log_probs: of the policy that sampled the token, whichever version that was; 0 elsewhere.
        versions: updates that the weights had received which the token was sampled with; of an observed
            token those of the turn before, of the prompt those of the first turn.
    """

    group: int
    index: int
    input_ids: NDArray[np.int64]
    completion_mask: NDArray[np.int64]
    old_log_probs: NDArray[np.float32]
    versions: NDArray[np.int32]
    advantage: float
    reward: float

    def ages(self, step: int) -> NDArray[np.int32]:
        """Of each sampled token: by how many updates its weights lie behind those of step `step`."""
        ages: NDArray[np.int32] = step - self.versions[self.completion_mask == 1]
        return ages

    def as_row(self) -> dict[str, Any]:
        """What TRL's packing reads."""
        return {
            "input_ids": self.input_ids,
            "completion_mask": self.completion_mask,
            "old_log_probs": self.old_log_probs,
            "advantage": self.advantage,
            "group_id": self.group,
            "metrics": {"reward": self.reward},
        }


@dataclass(frozen=True, slots=True)
class FinishedGroup:
    """All episodes of a group's number, none of them running any more.

    Args:
        left_out: index → why that sample is not among `samples`.
        left_tokens: index → how many tokens were sampled for it.
    """

    number: int
    samples: tuple[Sample, ...]
    left_out: Mapping[int, LeftOut] = field(default_factory=dict)
    left_tokens: Mapping[int, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """What it takes to compute it, about: the common prompt once and each completion."""
        if not self.samples:
            return 0
        prompt = min(int(np.argmax(sample.completion_mask)) for sample in self.samples)
        return prompt + sum(len(sample.input_ids) - prompt for sample in self.samples)


def finished_group(
    group: Sequence[Rollout], *, number: int, kind: Advantage, leave_out_equal: bool = False
) -> FinishedGroup:
    """A group as it is trained on: the judged samples with at least one sampled token, with their advantages.

    Args:
        leave_out_equal: whether nothing of a group without differences is trained on; the next group then
            takes its place by itself.

    Raises:
        ValueError: a rollout without log-probs.
    """
    samples: list[Sample] = []
    left_out: dict[int, LeftOut] = {}
    equal = leave_out_equal and not teaches(group)
    for index, row in enumerate(group_rows(group, kind)):
        if equal:
            left_out[index] = LeftOut.EQUAL_REWARDS
        elif row.advantage is None:
            left_out[index] = LeftOut.MASKED if row.rollout.reward.masked else LeftOut.NOT_JUDGED
        elif not any(row.rollout.trajectory.action_mask):
            left_out[index] = LeftOut.NO_TOKENS
        else:
            samples.append(_sample(row, number, index, row.advantage))
    tokens = {index: sum(group[index].trajectory.action_mask) for index in left_out}
    return FinishedGroup(number, tuple(samples), left_out, tokens)


def failed_group(number: int, size: int) -> FinishedGroup:
    """A group of which every episode failed on our side."""
    return FinishedGroup(number, (), dict.fromkeys(range(size), LeftOut.NOT_JUDGED))


def _sample(row: GroupRow, group: int, index: int, advantage: float) -> Sample:
    trajectory = row.rollout.trajectory
    before = len(trajectory.prompt_ids)
    versions = [trajectory.turns[0].action.weight_version] * before
    for turn in trajectory.turns:
        versions += [turn.action.weight_version] * (len(turn.action.token_ids) + len(turn.observation_ids))
    return Sample(
        group=group,
        index=index,
        input_ids=np.array([*trajectory.prompt_ids, *trajectory.completion_ids], dtype=np.int64),
        completion_mask=np.array([0] * before + list(trajectory.action_mask), dtype=np.int64),
        old_log_probs=np.array([0.0] * before + list(row.logprobs), dtype=np.float32),
        versions=np.array(versions, dtype=np.int32),
        advantage=advantage,
        reward=float(row.rollout.reward.value or 0.0),
    )
