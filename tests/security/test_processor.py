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

LITTLE = 0.05
"""So little that loops without the limit get more, however many others share the machine."""


async def busy(kind: str, cpus: float) -> float:
    """How many processors eight busy loops keep busy."""
    (case,) = (case for case in ALL_CASES if case.id == "RES-07")
    async with BACKENDS[kind](SandboxLimits(cpus=cpus)) as backend, backend.sandbox() as sandbox:
        result = await sandbox.exec(case.command, timeout=200)
    found = re.search(rb"BUSY ([0-9.]+)", result.stdout.head)
    assert found, result
    return float(found[1])


@pytest.mark.skipif(os.getuid() != 0, reason="without a cgroup processor time is not bounded")
@pytest.mark.parametrize("kind", ISOLATING)
async def test_a_part_of_a_processor_is_less_than_one(kind: str, request: pytest.FixtureRequest) -> None:
    """Side by side, so that both meet the same other work: without a limit they would get the same."""
    if kind == "docker":
        request.getfixturevalue("engine")
    part, whole = await asyncio.gather(busy(kind, LITTLE), busy(kind, 1.0))
    assert part <= 1.5 * LITTLE
    assert whole > 1.5 * LITTLE, "the same loops must get more where they may"
