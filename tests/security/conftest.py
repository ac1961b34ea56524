"""The host's witness and one backend for all cases; the neighbour whose latency is watched."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from sandbox_rl.sandboxes.base import Sandbox, SandboxBackend
from sandbox_rl.sandboxes.cases import CASE_LIMITS, HostWitness
from sandbox_rl.types import ExecStatus

from ..contract.backends import BACKENDS, ISOLATING


@pytest.fixture(scope="session")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostWitness]:
    """Entered before any backend, with canaries where trainers keep what policies look for."""
    root = tmp_path_factory.mktemp("trainer")
    places = [root / name for name in ("datasets", "checkpoints", "hub")]
    places.append(Path(__file__).parent / "__pycache__")  # in the checkout, where nobody commits it
    for place in places:
        place.mkdir(exist_ok=True)
    with HostWitness(places) as entered:
        yield entered


@pytest_asyncio.fixture(params=ISOLATING, scope="session", loop_scope="session")
async def backend(request: pytest.FixtureRequest, witness: HostWitness) -> AsyncIterator[SandboxBackend]:
    async with BACKENDS[request.param](CASE_LIMITS) as made:
        async with made.sandbox():  # what is made lazily is made before anything is counted
            pass
        yield made


@dataclass
class Neighbour:
    """A sandbox that runs `true` every 100 ms, and how long each took."""

    sandbox: Sandbox
    seconds: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    failures: int = 0

    async def live(self) -> None:
        while True:
            due = time.monotonic() + 0.1
            started = time.monotonic()
            result = await self.sandbox.exec("true", timeout=10)
            self.seconds.append(time.monotonic() - started)
            if result.status is not ExecStatus.OK or result.exit_code != 0:
                self.failures += 1
            due = max(due, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            self.lags.append(time.monotonic() - due)


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def neighbour(backend: SandboxBackend) -> AsyncIterator[Neighbour]:
    async with backend.sandbox() as sandbox:
        made = Neighbour(sandbox)
        task = asyncio.create_task(made.live())
        await asyncio.sleep(0)
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
