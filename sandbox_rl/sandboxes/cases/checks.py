"""The vocabulary of checks that cases are written in. Each returns a `Check`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from sandbox_rl.sandboxes.cases.model import CASE_LIMITS, Check, Seen, text_of
from sandbox_rl.types import AnswerStatus, ExecStatus

P = ParamSpec("P")

_EXCERPT = 300
_ANSWER_S = 10.0
SOON_S = 10.0
"""What ends by itself has ended by then, on a slow machine too; what hangs goes on to its time-out."""


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…")


def _check(judge: Callable[Concatenate[Seen, P], str]) -> Callable[P, Check]:
    """What takes the arguments of `judge` that follow what was seen, and returns the check by them."""

    @functools.wraps(judge)
    def checking_for(*args: P.args, **kwargs: P.kwargs) -> Check:
        return lambda seen: judge(seen, *args, **kwargs)

    return checking_for


def all_of(*checks: Check) -> Check:
    """Every check must hold; the problems are joined."""
    return lambda seen: "; ".join(problem for check in checks if (problem := check(seen)))


def holds(what: str, test: Callable[[Seen], bool]) -> Check:
    """`test` must be true; `what` says what it stands for."""
    return lambda seen: "" if test(seen) else f"expected: {what}; saw {_excerpt(seen.text)}"


def absent(*words: str) -> Check:
    """None of the words may be in the output of the command."""
    return lambda seen: _told("output contains", [w for w in words if w in seen.text], seen.text)


def present(*words: str) -> Check:
    """All words must be in the output: the proof that the attempt was really made."""
    return lambda seen: _told("output lacks", [w for w in words if w not in seen.text], seen.text)


def _told(what: str, words: list[str], text: str) -> str:
    return f"{what} {words}: {_excerpt(text)}" if words else ""


def both(*refused: str, proof: str = "end") -> Check:
    """The usual pair: the mark of success is absent, the proof that the command ran is present."""
    return all_of(absent(*refused), present(proof))


@_check
def elsewhere_absent(seen: Seen, *words: str) -> str:
    """The second sandbox worked and saw none of the words."""
    if seen.elsewhere is None or seen.elsewhere.status is not ExecStatus.OK:
        return f"the second sandbox did not answer: {_excerpt(repr(seen.elsewhere))}"
    text = text_of(seen.elsewhere)
    return _told("the second sandbox saw", [word for word in words if word in text], text)


def status(*allowed: ExecStatus) -> Check:
    """The command ended in one of these ways."""
    names = "/".join(allowed)
    return lambda s: "" if s.first.status in allowed else f"status {s.first.status}, expected {names}"


@_check
def exit_code(seen: Seen, code: int, step: int = 0) -> str:
    """Exit code of the command (step 0) or of follow-up number `step`."""
    got = (seen.first, *seen.then)[step].exit_code
    return "" if got == code else f"exit code {got} of step {step}, expected {code}"


@_check
def stdout_is(seen: Seen, expected: bytes) -> str:
    """Standard output is exactly these bytes and nothing was dropped."""
    got = seen.first.stdout
    if got.truncated or got.head + got.tail != expected:
        return f"stdout is {_excerpt(repr(got.head + got.tail))}, expected {_excerpt(repr(expected))}"
    return ""


@_check
def then_stdout(seen: Seen, expected: str) -> str:
    """Standard output of the first follow-up, white space around it ignored."""
    got = seen.then[0]
    text = got.stdout.head.decode("utf-8", "replace").strip()
    if got.status is ExecStatus.OK and text == expected:
        return ""
    return f"follow-up 1 gave {got.status} {_excerpt(text)}, expected {expected!r}"


@_check
def returned_within(seen: Seen, seconds: float) -> str:
    """Wall time of the command."""
    took = seen.first.seconds
    return "" if took <= seconds else f"took {took:.1f} s, expected at most {seconds} s"


@_check
def largest(seen: Seen, mark: str, limit: float) -> str:
    """The largest number printed after `mark` is at most `limit`, and there is one."""
    found = [float(n) for n in re.findall(rf"{re.escape(mark)} (-?\d+(?:\.\d+)?)", seen.text)]
    if not found:
        return f"no number after {mark!r} in {_excerpt(seen.text)}"
    return "" if max(found) <= limit else f"{mark} {max(found):g}, expected at most {limit:g}"


@_check
def lines_within(seen: Seen, pattern: str, allowed: str) -> str:
    """Every first group of `pattern` in the output is one of the words of `allowed`."""
    found = set(re.findall(pattern, seen.text, re.MULTILINE))
    if not found:
        return f"nothing matches {pattern!r} in {_excerpt(seen.text)}"
    extra = sorted(found.difference(allowed.split()))
    return f"not allowed: {extra}" if extra else ""


def alive_or_dead(check: Check) -> Check:
    """`check`, unless the command destroyed its own sandbox, which is its right."""
    return lambda seen: "" if seen.dead else check(seen)


def stored_at_most(mark: str, megabytes: int) -> Check:
    """`largest`, or a typed out-of-memory, or the end of the sandbox."""
    within = largest(mark, megabytes)
    return alive_or_dead(lambda seen: "" if seen.first.status is ExecStatus.OOM else within(seen))


@_check
def answer_status(seen: Seen, *allowed: AnswerStatus) -> str:
    """The answer was typed as one of these, soon."""
    if seen.answer is None or seen.answer.status not in allowed:
        return f"answer {_excerpt(repr(seen.answer))}, expected {'/'.join(allowed)}"
    if seen.answer_seconds > _ANSWER_S:
        return f"reading the answer took {seen.answer_seconds:.1f} s, expected at most {_ANSWER_S} s"
    return ""


@_check
def answer_is(seen: Seen, *texts: str) -> str:
    """The answer is OK and one of these texts."""
    if seen.answer is None or seen.answer.status is not AnswerStatus.OK or seen.answer.text not in texts:
        return f"answer {_excerpt(repr(seen.answer))}, expected one of {texts}"
    return ""


def kept_within_cap(seen: Seen) -> str:
    """Neither stream keeps more than the cap of the limits."""
    for name, stream in (("stdout", seen.first.stdout), ("stderr", seen.first.stderr)):
        kept = len(stream.head) + len(stream.tail)
        if kept > CASE_LIMITS.output_bytes:
            return f"{name} kept {kept} bytes, expected at most {CASE_LIMITS.output_bytes}"
    return ""
