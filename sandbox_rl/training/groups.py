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

from sandbox_rl.rollout import EpisodeRequest
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Rollout, Task

__all__ = ["Advantage", "GroupRow", "advantages", "group_of", "group_requests", "group_rows", "teaches"]

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
