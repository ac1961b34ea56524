"""Settings of faults on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field

from sandbox_rl.settings import Settings

FaultKind = Literal["sandbox_killed", "sandbox_hangs", "server_reset", "scorer_lost"]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


class ChaosSettings(Settings):
    """Faults injected into a real run, to watch that it survives them (`sandbox-rl train … --chaos 0.05`)."""

    share: float = Field(0.0, ge=0, le=0.5)
    """Share of the episodes' tries that get a fault: a sandbox that is killed or that hangs, a server that
    breaks the connection, a scorer that is lost. 0: none."""
    kinds: Mapping[FaultKind, Annotated[float, Field(gt=0)]] = Field(dict.fromkeys(KINDS, 1.0), min_length=1)
    """Which faults, and how often each compared with the others."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of which tries get one."""
