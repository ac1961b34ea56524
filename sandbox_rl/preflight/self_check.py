"""Every known case against a backend, and the attacks on scoring, as rows of one table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Protocol

from sandbox_rl.errors import ConfigError
from sandbox_rl.preflight.scoring_attacks import ATTACKS, check_scoring
from sandbox_rl.sandboxes.base import SandboxBackend, SandboxInfo, SandboxLimits
from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS
from sandbox_rl.sandboxes.config import BackendSettings
from sandbox_rl.sandboxes.self_check import CheckRow
from sandbox_rl.sandboxes.self_check import self_check as check_sandboxes

__all__ = ["Watch", "self_check"]


class Watch(Protocol):
    """Is told how the check goes on."""

    def say(self, text: str) -> None:
        """One line of news."""
        ...

    def row(self, row: CheckRow, number: int, of: int) -> None:
        """One more case is done."""
        ...


async def self_check(
    settings: BackendSettings, *, prefix: str = "", watch: Watch | None = None
) -> tuple[SandboxInfo, list[CheckRow]]:
    """Facts of the backend, and a row for each case by id.

    Args:
        prefix: only cases whose id begins so.

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
    every = not prefix
    rows: list[CheckRow] = []
    count = len(cases) + (ATTACKS if scoring else 0) + (bool(cases) and every)

    def made(assumed: SandboxLimits) -> SandboxBackend:
        if settings.limits != assumed and watch is not None:
            other = asdict(settings.limits).items() - asdict(assumed).items()
            said = ", ".join(f"{name}={value}" for name, value in sorted(other))
            watch.say(f"The cases assume other limits than {said}; a failure may mean only that.")
        return settings.backend()

    sandboxes = check_sandboxes(made, cases=cases, lag=every) if cases else None
    async for row in _one_after_the_other(sandboxes, check_scoring(settings) if scoring else None):
        rows.append(row)
        if watch is not None:
            watch.row(row, len(rows), count)
    return info, sorted(rows, key=lambda row: row.case)


async def _one_after_the_other(*parts: AsyncIterator[CheckRow] | None) -> AsyncIterator[CheckRow]:
    for part in filter(None, parts):
        async for row in part:
            yield row
