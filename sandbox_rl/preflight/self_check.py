"""Every known case against a backend, and attacks on scoring, as rows of one table.

In the attacks on scoring a scorer evaluates its answer: the worst that there may be.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from sandbox_rl.builders import scoring_place
from sandbox_rl.display import quieted
from sandbox_rl.errors import ConfigError
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.base import SandboxBackend, SandboxInfo, SandboxLimits
from sandbox_rl.sandboxes.cases import ALL_CASES, CASE_LIMITS, CONTROLS, Case, HostWitness, run_case
from sandbox_rl.sandboxes.config import BackendSettings
from sandbox_rl.types import Answer, AnswerStatus, Task

_SCORER = "def score(answer, task):\n    return 1.0 if eval(answer) else 0.0\n"
_NAME = "self_check_scorer"
_TIMEOUT_S = 2.0

_RUNS = "An answer runs as code in the scorer and"
_ATTACKS = (
    # (id, what the answer tries in one sentence, the answer, the reward of a place that holds)
    ("SCO-20", f"{_RUNS} reads a file of the host.", "open({path!r}).read()", 0.0),
    (
        "SCO-20b",
        f"{_RUNS} connects to the host.",
        "__import__('socket').create_connection(('127.0.0.1', {port}), 1)",
        0.0,
    ),
    ("SCO-20c", f"{_RUNS} ends every process it can.", "__import__('os').kill(-1, 9) or True", 0.0),
    (
        "SCO-20d",
        f"{_RUNS} leaves something for the next answer to find.",
        "setattr(__import__('builtins'), 'left', 1) or 1",
        1.0,
    ),
    (
        "SCO-20e",
        "The next answer looks for what the one before has left.",
        "__import__('builtins').left",
        0.0,
    ),
    ("SCO-20f", "An honest answer is scored after all of these.", "6 * 7 == 42", 1.0),
)

ATTACKS = len(_ATTACKS)
"""Rows that `check_scoring` yields."""


PATIENCE = 2.0  # factor on the deadlines around the cases, for a machine with other work
MOST_LAG_S = 0.1 * PATIENCE
AT_ONCE = 2
"""Cases that run at the same time."""


class CheckVerdict(StrEnum):
    """How a case came out."""

    PASS = "pass"
    FAIL = "fail"
    KNOWN_LIMIT = "known limit"  # the tier says itself that it cannot keep this promise here


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One case on one backend. `observed` is "as required" or what was wrong."""

    case: str
    title: str
    required: str
    observed: str
    tier: str
    verdict: CheckVerdict
    seconds: float


async def self_check(
    settings: BackendSettings,
    *,
    prefix: str = "",
    say: Callable[[str], None] = lambda _: None,
    done: Callable[[CheckRow, int, int], None] = lambda row, number, of: None,
) -> tuple[SandboxInfo, list[CheckRow]]:
    """Facts of the backend, and a row for each case by id.

    Args:
        prefix: only cases whose id begins so.
        say: is told what a person should know.
        done: is told of each row as it comes: its number, and how many there are.

    Raises:
        SetupError: this machine can make no such sandbox.
        ConfigError: no case is called so.
    """
    cases = [case for case in (*CONTROLS, *ALL_CASES) if case.id.startswith(prefix)]
    scoring = "SCO-20".startswith(prefix) or prefix.startswith("SCO-20")
    if not cases and not scoring:
        raise ConfigError(f"--cases: no case's id starts with {prefix!r}; ids begin with ISO, RES, …")
    async with settings.backend() as entered:
        info = entered.info

    def made(assumed: SandboxLimits) -> SandboxBackend:
        if settings.limits != assumed:
            other = asdict(settings.limits).items() - asdict(assumed).items()
            said = ", ".join(f"{name}={value}" for name, value in sorted(other))
            say(f"The cases assume other limits than {said}; a failure may mean only that.")
        return settings.backend()

    parts = [check_sandboxes(made, cases, lag=not prefix)] if cases else []
    parts += [check_scoring(settings)] if scoring else []
    count = len(cases) + (ATTACKS if scoring else 0) + (bool(cases) and not prefix)
    rows: list[CheckRow] = []
    for part in parts:
        async for row in part:
            rows.append(row)
            done(row, len(rows), count)
    return info, sorted(rows, key=lambda row: row.case)


async def check_sandboxes(
    make_backend: Callable[[SandboxLimits], SandboxBackend], cases: Iterable[Case], *, lag: bool = False
) -> AsyncIterator[CheckRow]:
    """Run `cases` against a real backend; rows come as they are ready.

    Args:
        make_backend: gives a backend, not yet entered; is told the limits that the cases assume.
        lag: add a row on how late the event loop was meanwhile.

    Raises:
        SetupError: this machine can make no sandbox at all.
    """
    free = asyncio.Semaphore(AT_ONCE)
    with HostWitness() as witness:
        async with make_backend(CASE_LIMITS) as backend:
            tier = f"{backend.info.backend}: {backend.info.tier}"

            async def one(case: Case) -> CheckRow:
                async with free:
                    outcome = await run_case(backend, case, witness, patience=PATIENCE)
                known = outcome.excused(backend.info.known_limits)
                failed = CheckVerdict.KNOWN_LIMIT if known else CheckVerdict.FAIL
                return CheckRow(
                    case=case.id,
                    title=case.title,
                    required=case.required,
                    observed="; ".join(outcome.problems) or "as required",
                    tier=tier,
                    verdict=failed if outcome.problems else CheckVerdict.PASS,
                    seconds=outcome.seconds,
                )

            lags: list[float] = []
            tasks = [asyncio.create_task(one(case)) for case in cases]
            watching = asyncio.create_task(_measure_lags(lags))
            try:
                for row in asyncio.as_completed(tasks):
                    yield await row
                if lag:
                    yield _lag_row(lags, tier)
            finally:
                for task in (*tasks, watching):
                    task.cancel()
                await asyncio.gather(*tasks, watching, return_exceptions=True)


async def _measure_lags(lags: list[float]) -> None:
    """Seconds by which this process's event loop is late, ten times a second."""
    while True:
        due = time.monotonic() + 0.1
        await asyncio.sleep(0.1)
        lags.append(time.monotonic() - due)


def _lag_row(lags: list[float], tier: str) -> CheckRow:
    late = sorted(lags)[int(0.99 * (len(lags) - 1))] if lags else 0.0
    fine = late <= MOST_LAG_S
    return CheckRow(
        case="LAG-01",
        title="All of these together keep the trainer from its own work.",
        required=f"99 of 100 turns are at most {MOST_LAG_S:g} s late.",
        observed="as required" if fine else f"{late:.2f} s late",
        tier=tier,
        verdict=CheckVerdict.PASS if fine else CheckVerdict.FAIL,
        seconds=0.1 * len(lags),
    )


async def check_scoring(sandbox: BackendSettings | None = None) -> AsyncIterator[CheckRow]:
    """One row per attack, in the place where answers are scored by default.

    Args:
        sandbox: settings of the sandboxes that commands run in; with a Docker image, a further such place.

    Raises:
        SetupError: this machine has no such place.
    """
    place = scoring_place(RewardSettings(), sandbox)
    # The pool warns of a scorer that fails on an answer; here that is what an attack comes to.
    quiet = quieted("sandbox_rl.rewards", logging.ERROR)
    with HostWitness() as witness, tempfile.TemporaryDirectory() as directory, quiet:
        scorer = Path(directory)
        await asyncio.to_thread((scorer / f"{_NAME}.py").write_text, _SCORER)
        settings = RewardSettings(workers=1, timeout_s=_TIMEOUT_S, scorer=f"{_NAME}:score")
        async with ScoringPool(place, settings, beside=scorer) as pool:
            for id, title, text, expected in _ATTACKS:
                started = time.monotonic()
                filled = text.format(path=witness.path, port=witness.port)
                task = Task(id, "?", "True", scorer=f"{_NAME}:score")
                reward = await pool.score(task, Answer(AnswerStatus.OK, filled))
                problems = [f"was worth {reward.value}, expected {expected}"] * (reward.value != expected)
                problems += witness.problems()
                yield CheckRow(
                    case=id,
                    title=title,
                    required=f"It is worth {expected:g}, and nothing outside is reached.",
                    observed="; ".join(problems) or "as required",
                    tier=f"scoring: {place.isolation}",
                    verdict=CheckVerdict.FAIL if problems else CheckVerdict.PASS,
                    seconds=time.monotonic() - started,
                )
