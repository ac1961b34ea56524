"""One turn: the action as sampled, the calls in it, how commands ended, and the observations that answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


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
        weight_version: number of weight updates that the sampling policy had received, for the first token.
        weight_switches: (index, version) where the policy got other weights in the middle of the turn: from
            the token at this index on, the version that follows. Where the engine does not say, a token has
            the version from before the turn began: never one newer than its own.
        switches_known: False where the policy got other weights meanwhile and its engine did not say from
            which token on.
        lost_s: seconds that failures of ours took before it could be sampled; they are not the episode's.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: str
    weight_version: int = 0
    weight_switches: tuple[tuple[int, int], ...] = ()
    switches_known: bool = True
    lost_s: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids):
            raise ValueError(
                f"Action has {len(self.token_ids)} token ids but {len(self.logprobs)} log-probs; "
                "the policy must return one per sampled token"
            )
        begins = [0, *(index for index, _ in self.weight_switches), len(self.token_ids)]
        if self.weight_switches and any(b <= a for a, b in itertools.pairwise(begins)):
            raise ValueError(
                f"Action of {len(self.token_ids)} tokens with weight switches {self.weight_switches}; "
                "expected growing indices of its tokens after the first"
            )

    @property
    def versions(self) -> tuple[int, ...]:
        """The weight version of each token, same length as `token_ids`."""
        return token_versions(len(self.token_ids), self.weight_version, self.weight_switches)


def token_versions(tokens: int, first: int, switches: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The weight version of each of a turn's tokens: `first`, and of each (index, version) on from there."""
    spans = [(0, first), *switches, (tokens, 0)]
    return tuple(
        version for (begin, version), (end, _) in itertools.pairwise(spans) for _ in range(begin, end)
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
