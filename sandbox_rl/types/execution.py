"""What a sandbox gives back: how a command ended, and the answer file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Answer", "AnswerStatus", "ExecResult", "ExecStatus", "Stream"]


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
