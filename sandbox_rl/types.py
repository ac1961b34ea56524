"""The values that flow through a run, one way: Task → Trajectory → Rollout.

All are frozen; a later stage returns a new value and never fills in an earlier one. Shapes: `T` is
the number of completion tokens of an episode; all per-token tuples of a trajectory have length T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any

__all__ = [
    "Action",
    "Answer",
    "AnswerStatus",
    "ChatRecord",
    "ExecResult",
    "ExecStatus",
    "MalformedCall",
    "Message",
    "Observation",
    "Reward",
    "Rollout",
    "StopReason",
    "Stream",
    "Task",
    "ToolCall",
    "ToolFailure",
    "Trajectory",
    "Turn",
    "TurnTiming",
]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message of a prompt: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. The gold `answer` and `metadata` never enter the sandbox or the prompt.

    Args:
        id: unique within a data set; decides the train/held-out split.
        prompt: the problem statement in words.
        answer: the gold answer, in the form that `scorer` expects.
        files: relative POSIX path → content, placed under the sandbox's input directory.
        domain: names the prompt set and the row in reports.
        scorer: name of a scorer (`sandbox_rl.rewards`) or `package.module:function`.
        metadata: JSON values for the scorer and for reports.
    """

    id: str
    prompt: str
    answer: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    domain: str = "general"
    scorer: str = "exact"
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ExecStatus(StrEnum):
    """How a command in the sandbox ended."""

    OK = "ok"  # it ran to its end, whatever its exit code
    TIMEOUT = "timeout"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"  # killed because it flooded its output
    SANDBOX_DEAD = "sandbox_dead"


@dataclass(frozen=True, slots=True)
class Stream:
    """What was kept of one output stream: its first and last bytes.

    When nothing was dropped `tail` is empty and `head` is the whole stream.
    """

    head: bytes = b""
    tail: bytes = b""
    total_bytes: int = 0

    @property
    def truncated(self) -> bool:
        """Whether bytes between head and tail were dropped."""
        return self.total_bytes > len(self.head) + len(self.tail)


@dataclass(frozen=True, slots=True)
class ExecResult:
    """One command's outcome.

    `exit_code` follows the shell: 128 + n for death by signal n; None when the command did not end
    by itself (time-out, dead sandbox). `seconds` is wall time, `cpu_seconds` user + system time of
    the command's own process tree as far as it was reaped, `peak_memory_bytes` its largest process.
    """

    status: ExecStatus
    exit_code: int | None = None
    stdout: Stream = Stream()
    stderr: Stream = Stream()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def truncated(self) -> bool:
        """Whether either stream was cut."""
        return self.stdout.truncated or self.stderr.truncated


class AnswerStatus(StrEnum):
    """What was found at the answer path after the sandbox was frozen."""

    OK = "ok"
    MISSING = "missing"
    NOT_REGULAR = "not_regular"
    TOO_LARGE = "too_large"
    UNDECODABLE = "undecodable"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer file as read once from outside; `text` is "" unless `status` is OK."""

    status: AnswerStatus
    text: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as parsed from a policy turn; `arguments` may still be invalid for the tool.

    `id` is what the policy called it, where its format has such names; the observation repeats it.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """Something in a policy turn that was meant as a tool call and cannot be parsed.

    `reason` is written for the policy: what is wrong and how a call should look.
    """

    reason: str


class ToolFailure(StrEnum):
    """Why an observation reports a failure of the policy's own making."""

    NO_CALL = "no_call"  # the turn holds no tool call
    MALFORMED = "malformed"  # a call that cannot be parsed
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    TIMEOUT = "timeout"
    OOM = "oom"
    FILE = "file"  # the editor could not do it: missing file, no match …
    SANDBOX_DEAD = "sandbox_dead"


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy is told after one tool call (or after a turn without a valid one).

    There is one for each call of a turn, in order, and exactly one for a turn without any call.

    `text` is plain text, cut to size, not yet neutralised or framed: `chat` does both.
    """

    text: str
    tool: str = ""
    failure: ToolFailure | None = None
    submitted: bool = False
    exit_code: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Action:
    """One policy turn exactly as sampled.

    Args:
        token_ids: sampled ids, including the end-of-turn id when the policy sampled one.
        logprobs: natural-log probability of each id under the policy that sampled it, same length;
            None when the engine gives none (then the turn can be evaluated, not trained on).
        finish_reason: "stop" (an end-of-turn id was sampled) or "length" (the cap was reached).
        weight_version: number of weight updates that the sampling policy had received.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: str
    weight_version: int = 0

    def __post_init__(self) -> None:
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids):
            raise ValueError(
                f"Action has {len(self.token_ids)} token ids but {len(self.logprobs)} log-probs; "
                "the policy must return one per sampled token"
            )


@dataclass(frozen=True, slots=True)
class TurnTiming:
    """Seconds of one turn, by what they were spent on."""

    generation: float = 0.0
    execution: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One action and what answered it.

    `observation_ids` are the ids that follow the action in the sequence: the observation in the
    chat template's own frame and the header of the next assistant turn. Empty on the last turn.
    """

    action: Action
    calls: tuple[ToolCall | MalformedCall, ...] = ()
    observations: tuple[Observation, ...] = ()
    observation_ids: tuple[int, ...] = ()
    timing: TurnTiming = TurnTiming()


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
    """A scored trajectory."""

    trajectory: Trajectory
    reward: Reward
    task: Task
