"""The processor limit bites: on the weak backend RES-07 would show nothing but the load of the machine."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.cases import ALL_CASES

from ..contract.backends import BACKENDS, ISOLATING

pytestmark = pytest.mark.alone

QUARTER = 0.25
SECONDS = 3.0


async def burnt(kind: str, cpus: float) -> float:
    """Seconds of processor time that eight busy loops get in three seconds."""
    (case,) = (case for case in ALL_CASES if case.id == "RES-07")
    async with BACKENDS[kind](SandboxLimits(cpus=cpus)) as backend, backend.sandbox() as sandbox:
        result = await sandbox.exec(case.command, timeout=30)
    found = re.search(rb"BURNT ([0-9.]+)", result.stdout.head)
    assert found, result
    return float(found[1])


@pytest.mark.skipif(os.getuid() != 0, reason="without a cgroup processor time is not bounded")
@pytest.mark.parametrize("kind", ISOLATING)
async def test_a_quarter_of_a_processor_is_less_than_one(kind: str, request: pytest.FixtureRequest) -> None:
    """Side by side, so that both meet the same other work: without a limit they would get the same."""
    if kind == "docker":
        request.getfixturevalue("engine")
    bound = SECONDS * QUARTER * 1.1 + 0.5
    quarter, whole = await asyncio.gather(burnt(kind, QUARTER), burnt(kind, 1.0))
    assert quarter <= bound
    assert whole > bound, "the same loops must get more where they may"
