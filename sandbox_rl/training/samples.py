"""Groups of rollouts as asynchronous updates take them: whole, with advantages and each token's version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandbox_rl import ledger
from sandbox_rl.audit.faults import why_not_judged
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.training.groups import Advantage, GroupRow, end_of, group_rows, left_out_group, teaches
from sandbox_rl.types import Rollout


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode to train on. All arrays have the shape (T,), prompt and completion together.

    Args:
        index: place within its group.
        episode: id.
        completion_mask: 1 where the policy sampled the token.
        old_log_probs: of the policy that sampled the token, whichever version that was; 0 elsewhere.
        versions: updates that the weights had received which the token was sampled with; of an observed
            token those of the turn's end before it, of the prompt those of the first token.
        divided: sampled tokens of turns in the middle of which the weights changed.
        unlabelled: of turns in which they may have, but the server did not say from which token on.
    """

    group: int
    index: int
    episode: str
    input_ids: NDArray[np.int64]
    completion_mask: NDArray[np.int64]
    old_log_probs: NDArray[np.float32]
    versions: NDArray[np.int32]
    advantage: float
    reward: float
    divided: int = 0
    unlabelled: int = 0

    def ages(self, step: int) -> NDArray[np.int32]:
        """Of each sampled token: by how many updates its weights lie behind those of step `step`."""
        ages: NDArray[np.int32] = step - self.versions[self.completion_mask == 1]
        return ages

    def as_row(self) -> dict[str, Any]:
        """What TRL's packing reads, and which sample it is."""
        return {
            "index": self.index,
            "episode": self.episode,
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
        record: how each of its samples ends once the update of `samples` has finished.
        samples: to train on.
        left_tokens: index → how many tokens were sampled for a sample that is not among `samples`.
        faults: index → why it could not be judged.
    """

    record: ledger.Group
    samples: tuple[Sample, ...]
    left_tokens: Mapping[int, int] = field(default_factory=dict)
    faults: Mapping[int, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """In the whole run."""
        return self.record.number

    @property
    def left_out(self) -> Mapping[int, SampleEnd]:
        """Index → why that sample is not among `samples`."""
        kept = {sample.index for sample in self.samples}
        return {i: sample.end for i, sample in enumerate(self.record.samples) if i not in kept}

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
    equal = not teaches(group)
    samples: list[Sample] = []
    ends: list[ledger.Sample] = []
    left_tokens: dict[int, int] = {}
    faults: dict[int, str] = {}
    for index, row in enumerate(group_rows(group, kind)):
        end, trajectory = end_of(row.rollout, equal=equal), row.rollout.trajectory
        ends.append(ledger.Sample(trajectory.episode_id, end, row.advantage))
        if end is SampleEnd.USED or (end is SampleEnd.EQUAL_REWARDS and not leave_out_equal):
            assert row.advantage is not None, "it has a reward"
            samples.append(_sample(row, number, index, row.advantage))
        else:
            left_tokens[index] = sum(trajectory.action_mask)
        if end is SampleEnd.NOT_JUDGED:
            faults[index] = why_not_judged(row.rollout)
    record = ledger.Group(number, group[0].task.id, None, tuple(ends))
    return FinishedGroup(record, tuple(samples), left_tokens, faults)


def failed_group(number: int, task: str, episodes: Sequence[str], why: str) -> FinishedGroup:
    """A group of which every episode failed on our side."""
    record = left_out_group(number, task, episodes, SampleEnd.NOT_JUDGED)
    return FinishedGroup(record, (), faults=dict.fromkeys(range(len(episodes)), why))


def _sample(row: GroupRow, group: int, index: int, advantage: float) -> Sample:
    trajectory, reward = row.rollout.trajectory, row.rollout.reward.value
    assert reward is not None, "it has an advantage"
    before = len(trajectory.prompt_ids)
    versions = [trajectory.turns[0].action.weight_version] * before
    for turn in trajectory.turns:
        own = turn.action.versions
        versions += [*own, *(own[-1:] or [turn.action.weight_version]) * len(turn.observation_ids)]
    return Sample(
        group=group,
        index=index,
        episode=trajectory.episode_id,
        input_ids=np.array([*trajectory.prompt_ids, *trajectory.completion_ids], dtype=np.int64),
        completion_mask=np.array([0] * before + list(trajectory.action_mask), dtype=np.int64),
        old_log_probs=np.array([0.0] * before + list(row.logprobs), dtype=np.float32),
        versions=np.array(versions, dtype=np.int32),
        advantage=advantage,
        reward=float(reward),
        divided=sum(len(t.action.token_ids) for t in trajectory.turns if t.action.weight_switches),
        unlabelled=sum(len(t.action.token_ids) for t in trajectory.turns if not t.action.switches_known),
    )
