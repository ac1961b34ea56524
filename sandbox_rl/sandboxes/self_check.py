"""Tries this machine's sandboxes: every adversarial case and every control, as rows of a table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from sandbox_rl.sandboxes.base import SandboxBackend, SandboxLimits
from sandbox_rl.sandboxes.cases import ALL_CASES, CASE_LIMITS, CONTROLS, Case, HostWitness, run_case

PATIENCE = 2.0  # factor on the deadlines around the cases, for a machine with other work
MOST_LAG_S = 0.1 * PATIENCE


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
    make_backend: Callable[[SandboxLimits], SandboxBackend],
    *,
    cases: Iterable[Case] = (*CONTROLS, *ALL_CASES),
    at_once: int = 2,
    lag: bool = False,
) -> AsyncIterator[CheckRow]:
    """Run `cases` against a real backend; rows come as they are ready.

    Args:
        make_backend: gives a backend, not yet entered; is told the limits that the cases assume.
        at_once: cases that run at the same time.
        lag: add a row on how late the event loop was meanwhile.

    Raises:
        SetupError: this machine can make no sandbox at all.
    """
    free = asyncio.Semaphore(at_once)
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
