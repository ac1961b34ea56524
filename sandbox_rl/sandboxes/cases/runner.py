"""Runs a case against a backend and asserts what must hold after every case.

The invariants, whatever the case: the command returns by its timeout plus a grace; afterwards the
same sandbox answers or says that it is dead and a new one is there within five seconds; closing is
quick; no canary of the host is in anything that came out; nothing on the host was reached; nothing
that the command did raised an infrastructure fault.
"""

from __future__ import annotations

import asyncio
import time

from sandbox_rl.errors import SandboxRLError
from sandbox_rl.sandboxes.base import Sandbox, SandboxBackend
from sandbox_rl.sandboxes.cases.model import Case, Outcome, Seen, text_of
from sandbox_rl.sandboxes.cases.witness import HostWitness
from sandbox_rl.types import Answer, ExecResult, ExecStatus

GRACE_S = 10.0
"""What a command may take beyond its timeout until its result is there."""

_FOLLOW_UP_S = 30.0
_CREATE_S = 5.0
_CLOSE_S = 10.0
_ANSWER_S = 10.0
_MAY_QUEUE_S = 60.0


async def run_case(
    backend: SandboxBackend, case: Case, witness: HostWitness, *, patience: float = 1.0
) -> Outcome:
    """Run `case` in a sandbox of its own. Raises nothing that the case brought about.

    Args:
        patience: factor on the deadlines of the invariants (not of the case), for a machine that
            runs many cases at once.
    """
    started = time.monotonic()
    earlier = witness.problems()
    problems: list[str] = []
    seen: Seen | None = None
    context = backend.sandbox({"question.txt": b"6*7?\n"}, timeout=_MAY_QUEUE_S)
    try:
        sandbox = await context.__aenter__()
        try:
            seen = await _observe(backend, sandbox, case, witness, problems, patience)
        except TimeoutError as error:
            problems.append(str(error) or "a deadline passed")
        finally:
            closing = time.monotonic()
            async with asyncio.timeout(6 * _CLOSE_S * patience):
                await context.__aexit__(None, None, None)
            if (took := time.monotonic() - closing) > _CLOSE_S * patience:
                problems.append(f"closing took {took:.1f} s, expected at most {_CLOSE_S * patience:.0f} s")
    except SandboxRLError as error:
        problems.append(f"raised {type(error).__name__}: {error}")
    except TimeoutError:
        problems.append("closing the sandbox never ended")
    claim = case.check(seen) if seen is not None else ""
    if seen is not None:
        problems.extend(_leaked(seen, witness))
    problems.extend(problem for problem in witness.problems() if problem not in earlier)
    return Outcome(case.id, claim, tuple(problems), seen, time.monotonic() - started)


async def _observe(
    backend: SandboxBackend,
    sandbox: Sandbox,
    case: Case,
    witness: HostWitness,
    problems: list[str],
    patience: float,
) -> Seen:
    first = await _exec(sandbox, witness.fill_in(case.command), case.timeout, patience)
    elsewhere = None
    if case.elsewhere:
        async with backend.sandbox(timeout=_MAY_QUEUE_S) as second:
            elsewhere = await _exec(second, witness.fill_in(case.elsewhere), _FOLLOW_UP_S, patience)
    then = [await _exec(sandbox, witness.fill_in(c), _FOLLOW_UP_S, patience) for c in case.then]
    problems.extend(await _next_exec(backend, sandbox, patience))
    answer, took = await _answer(sandbox, patience) if case.reads_answer else (None, 0.0)
    return Seen(first, tuple(then), elsewhere, answer, took)


async def _exec(sandbox: Sandbox, command: str, timeout: float, patience: float) -> ExecResult:
    deadline = timeout + GRACE_S * patience
    try:
        async with asyncio.timeout(deadline):
            return await sandbox.exec(command, timeout=timeout)
    except TimeoutError:
        raise TimeoutError(
            f"exec with a timeout of {timeout} s had not returned after {deadline} s"
        ) from None


async def _next_exec(backend: SandboxBackend, sandbox: Sandbox, patience: float) -> tuple[str, ...]:
    """The sandbox still works, or is typed as dead and can be replaced at once."""
    after = await _exec(sandbox, "echo ok", _FOLLOW_UP_S, patience)
    if after.status is ExecStatus.OK and after.stdout.head == b"ok\n" and after.exit_code == 0:
        return ()
    if after.status is not ExecStatus.SANDBOX_DEAD:
        return (f"the next exec gave {after.status} {text_of(after)[:200]!r}, expected ok or sandbox_dead",)
    started = time.monotonic()
    async with backend.sandbox(timeout=_MAY_QUEUE_S) as fresh:
        reply = await _exec(fresh, "echo ok", _FOLLOW_UP_S, patience)
    took = time.monotonic() - started
    if reply.stdout.head != b"ok\n" or took > _CREATE_S * patience:
        return (f"after sandbox_dead a new sandbox gave {reply.status} in {took:.1f} s",)
    return ()


async def _answer(sandbox: Sandbox, patience: float) -> tuple[Answer, float]:
    started = time.monotonic()
    try:
        async with asyncio.timeout(_ANSWER_S * patience):
            answer = await sandbox.read_answer()
    except TimeoutError:
        raise TimeoutError(f"read_answer had not returned after {_ANSWER_S * patience} s") from None
    return answer, time.monotonic() - started


def _leaked(seen: Seen, witness: HostWitness) -> tuple[str, ...]:
    results = (seen.first, *seen.then, *((seen.elsewhere,) if seen.elsewhere else ()))
    texts = [text_of(result) for result in results] + [seen.answer.text if seen.answer else ""]
    return ("a canary of the host came out",) if any(witness.canary in text for text in texts) else ()
