"""One rule for groups, shared by synchronous and asynchronous training.

What a group is named and sampled with, what each of its rollouts counts for, and whether it is worth training
on: all of it follows from the group's number and its rewards alone.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.ledger import Group, Sample, SampleEnd
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Rollout, Task

Advantage = Literal["grpo", "dr_grpo", "rloo"]

EPSILON = 1e-4
"""Added to the standard deviation, as TRL's synchronous trainer does."""


def group_requests(
    task: Task,
    number: int,
    *,
    seed: int,
    size: int,
    again: int = 0,
    refill: int | None = None,
    retried: bool = False,
) -> list[EpisodeRequest]:
    """The episodes of a group: their seeds follow from its number, its task and the run's seed alone.

    Args:
        number: of the group in the whole run, all processes together.
        again: how often the run was started before and lost what it had sampled; part of the ids only.
        refill: number of the round in which this group takes the place of the one with the same number.
        retried: it was cancelled before, as too slow, and is sampled once more as it was; ids only.
    """
    name = f"train-{number:06d}"
    key: tuple[int | str, ...] = (number,)
    if refill is not None:
        name, key = f"{name}.refill{refill}", (number, "refill", refill)
    if retried:
        name += ".retried"
    suffix = f"-r{again}" if again else ""
    return [
        EpisodeRequest(
            id=f"{name}-{sample:04d}{suffix}", task=task, seed=derive_seed(seed, task.id, *key, sample)
        )
        for sample in range(size)
    ]


def group_of(episode_id: str) -> int | None:
    """The group's number in the id of a training episode; None for any other id."""
    found = re.match(r"train-(\d+)[-.]", episode_id)
    return None if found is None else int(found.group(1))


def teaches(group: Sequence[Rollout]) -> bool:
    """Whether the rewards of a group differ; if not, every advantage in it is 0."""
    return len({r.reward.value for r in group if r.reward.value is not None}) > 1


@dataclass(frozen=True, slots=True)
class NumberedGroup:
    """The rollouts of a group's number.

    Args:
        number: in the whole run.
        refill: round in which they took the place of the group as it was drawn; None for that one.
    """

    number: int
    refill: int | None
    rollouts: Sequence[Rollout]

    @property
    def task(self) -> str:
        """Id."""
        return self.rollouts[0].task.id

    def left_out(self, end: SampleEnd) -> Group:
        """What the ledger says of it if no trainer gets it."""
        episodes = [rollout.trajectory.episode_id for rollout in self.rollouts]
        return left_out_group(self.number, self.task, episodes, end, refill=self.refill)


def end_of(rollout: Rollout, *, equal: bool) -> SampleEnd:
    """How a sample of a group ends that is handed to a trainer, once its update has finished.

    Args:
        equal: whether its group does not teach anything.
    """
    if rollout.reward.value is None:
        return SampleEnd.OVERLONG if rollout.reward.masked else SampleEnd.NOT_JUDGED
    if not any(rollout.trajectory.action_mask):
        return SampleEnd.NO_TOKENS
    return SampleEnd.EQUAL_REWARDS if equal else SampleEnd.USED


def left_out_group(
    number: int, task: str, episodes: Sequence[str], end: SampleEnd, *, refill: int | None = None
) -> Group:
    """A group that is not handed to a trainer; none of its samples has an advantage."""
    return Group(number, task, refill, tuple(Sample(episode, end, None) for episode in episodes))


def advantages(rewards: Sequence[float | None], kind: Advantage) -> list[float | None]:
    """The advantage of each rollout within its group; None where there is no reward.

    `grpo`: (r - mean) / (std + 1e-4), std unbiased (arXiv 2402.03300). `dr_grpo`: r - mean
    (arXiv 2503.20783). `rloo`: r minus the mean of the others, (r - mean) * n / (n - 1)
    (arXiv 2402.14740); the paper's baseline. n counts judged rollouts only.
    """
    judged = [r for r in rewards if r is not None]
    if len(judged) < 2:
        return [None if r is None else 0.0 for r in rewards]
    mean = statistics.fmean(judged)
    scale = {
        "grpo": lambda: 1 / (statistics.stdev(judged) + EPSILON),
        "dr_grpo": lambda: 1.0,
        "rloo": lambda: len(judged) / (len(judged) - 1),
    }[kind]()
    return [None if r is None else (r - mean) * scale for r in rewards]


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One rollout of a finished group, as any trainer takes it.

    Args:
        logprobs: of the completion's tokens, of the policy that sampled them; 0 where they were observed.
        advantage: None where there is no reward: nothing of it is trained on.
    """

    rollout: Rollout
    logprobs: tuple[float, ...]
    advantage: float | None


def group_rows(group: Sequence[Rollout], kind: Advantage) -> list[GroupRow]:
    """The rows of a finished group, in order.

    Raises:
        ValueError: a rollout without log-probs.
    """
    rows = []
    found = advantages([rollout.reward.value for rollout in group], kind)
    for rollout, advantage in zip(group, found, strict=True):
        logprobs = rollout.trajectory.logprobs
        if logprobs is None:
            raise ValueError(
                f"episode {rollout.trajectory.episode_id!r} has no log-probs; a policy that is trained must "
                "return one per sampled token"
            )
        rows.append(GroupRow(rollout, tuple(logprobs), advantage))
    return rows
