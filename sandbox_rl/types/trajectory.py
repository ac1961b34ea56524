"""The record of an episode, and its reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any

from sandbox_rl.types.task import Answer, Task
from sandbox_rl.types.turns import Turn


class StopReason(StrEnum):
    """Why an episode ended."""

    SUBMITTED = "submitted"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"  # the token budget or the model's context is used up
    TIMEOUT = "timeout"
    SANDBOX_DEAD = "sandbox_dead"
    INFRA_FAULT = "infra_fault"

    @property
    def is_overlong(self) -> bool:
        """Whether a budget ended the episode instead of the policy."""
        return self in (StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.TIMEOUT)


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """An episode behind a chat endpoint, which hides the ids.

    Args:
        messages: the whole conversation as the endpoint takes it.
        usage: tokens by "prompt", "sampled" and "observed", as the endpoint reports them.
    """

    messages: tuple[Mapping[str, Any], ...]
    usage: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The record of one episode.

    The trained sequence is `prompt_ids + completion_ids`; the last id of the completion is the
    policy's own, so truncation can be judged by it. With `chat` there are no ids: it can be scored and
    shown, not trained on.
    """

    task_id: str
    prompt_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    stop: StopReason
    answer: Answer
    episode_id: str = ""
    fault: str = ""  # what went wrong, when stop is INFRA_FAULT
    seconds: float = 0.0
    chat: ChatRecord | None = None  # of a chat endpoint; None where the ids say it all

    def __post_init__(self) -> None:
        if self.turns and self.turns[-1].observation_ids:
            raise ValueError(
                f"episode {self.episode_id!r} of task {self.task_id!r}: the last turn carries "
                "observation ids; a trajectory must end with the policy's own tokens"
            )

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """Sampled and observed ids after the prompt, in order, shape (T,)."""
        return tuple(chain.from_iterable((*t.action.token_ids, *t.observation_ids) for t in self.turns))

    @property
    def action_mask(self) -> tuple[int, ...]:
        """1 where the policy sampled the token, 0 where it observed it, shape (T,)."""
        return tuple(
            chain.from_iterable(
                (*(1,) * len(t.action.token_ids), *(0,) * len(t.observation_ids)) for t in self.turns
            )
        )

    @property
    def logprobs(self) -> tuple[float, ...] | None:
        """Sampling log-prob of each token (0.0 where observed), shape (T,); None if any is unknown."""
        values: list[float] = []
        for turn in self.turns:
            if turn.action.logprobs is None:
                return None
            values.extend(turn.action.logprobs)
            values.extend([0.0] * len(turn.observation_ids))
        return tuple(values)


@dataclass(frozen=True, slots=True)
class Reward:
    """The outcome reward; `value` None means that it could not be judged (our fault), or is `masked`."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    seconds: float = 0.0
    masked: bool = False  # None by the recipe's choice: a budget ended the episode


@dataclass(frozen=True, slots=True)
class Rollout:
    """A scored trajectory. One that was lost to a fault of ours has no reward, however it came to be."""

    trajectory: Trajectory
    reward: Reward
    task: Task

    def __post_init__(self) -> None:
        if self.trajectory.stop is StopReason.INFRA_FAULT and self.reward.value is not None:
            raise ValueError(
                f"episode {self.trajectory.episode_id!r} was lost to a fault of ours, but has the reward "
                f"{self.reward.value}; expected None"
            )
