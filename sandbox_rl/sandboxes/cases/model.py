"""What an adversarial case is, and what is seen when one runs.

A case is data: a command as the policy could send it, what must hold afterwards in words, and a
check that tells from the results whether it held. Cases name the host's canaries
by `$HOST_…` words, which the runner replaces (see `HostWitness.fill_in`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.types import Answer, ExecResult, ExecStatus

CASE_LIMITS = SandboxLimits()
"""What every case and control assumes: 512 MiB, 128 pids, 256 MiB disk, 20,000 inodes, 1,024 open
files, 1 CPU, 1 MiB kept of each output stream. Run the cases on a backend with these limits."""


def text_of(result: ExecResult) -> str:
    """All that was kept of both streams, undecodable bytes replaced."""
    parts = (result.stdout.head, result.stdout.tail, result.stderr.head, result.stderr.tail)
    return "".join(part.decode("utf-8", "replace") for part in parts)


@dataclass(frozen=True, slots=True)
class Seen:
    """The observations of one run of a case.

    Args:
        first: result of the case's own command.
        then: results of its follow-up commands, in the same sandbox.
        elsewhere: result of its command in a second sandbox, made while the first was alive.
        answer: what `read_answer` gave, when the case reads it.
        answer_seconds: how long reading it took.
    """

    first: ExecResult
    then: tuple[ExecResult, ...] = ()
    elsewhere: ExecResult | None = None
    answer: Answer | None = None
    answer_seconds: float = 0.0

    @property
    def text(self) -> str:
        """Both streams of the case's own command."""
        return text_of(self.first)

    @property
    def dead(self) -> bool:
        """Whether the command destroyed its sandbox."""
        return any(r.status is ExecStatus.SANDBOX_DEAD for r in (self.first, *self.then))


Check = Callable[[Seen], str]
"""Says in words what is wrong; "" when all is as required."""


@dataclass(frozen=True, slots=True)
class Case:
    """One adversarial case.

    Args:
        id: "ISO-01"; a letter after the number marks a variant by another way in.
        title: what the policy tries, in one sentence that a user understands.
        required: what must be seen, in words.
        command: what it sends to bash.
        check: judges what was seen.
        timeout: seconds that the command gets.
        then: further commands in the same sandbox, each with 30 s.
        elsewhere: a command for a second sandbox while the first is alive.
        reads_answer: whether the answer is read at the end.
    """

    id: str
    title: str
    required: str
    command: str
    check: Check
    timeout: float = 12.0
    then: tuple[str, ...] = ()
    elsewhere: str = ""
    reads_answer: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a case gave. It passed when there are no problems.

    Args:
        claim: what the case's own check found wrong, "" for nothing.
        invariants: what must hold after every case, and did not.
    """

    case_id: str
    claim: str
    invariants: tuple[str, ...]
    seen: Seen | None = None
    seconds: float = 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that was not as required."""
        return (*filter(None, (self.claim,)), *self.invariants)

    def excused(self, known_limits: Collection[str]) -> bool:
        """Whether it failed in nothing but the claim of a case that a tier says it cannot keep."""
        return bool(self.claim) and not self.invariants and self.case_id in known_limits
