"""The host's witness and one backend for all cases; the neighbour whose latency is watched."""

import asyncio
import os
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

USER = 23_456  # an id that no account has
BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
"""Whether other tests run meanwhile, on the same few cores."""


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
    if request.param == "docker":
        request.getfixturevalue("engine")
    async with BACKENDS[request.param](CASE_LIMITS) as made:
        # What is made lazily, threads and connections to an engine, is made before anything is counted.
        await asyncio.gather(*(_live_once(made) for _ in range(NUMBERS[request.param].to_warm_up)))
        yield made


async def _live_once(backend: SandboxBackend) -> None:
    async with backend.sandbox():
        pass


@dataclass(frozen=True)
class Numbers:
    """How much of everything: a container costs the machine ten times what an embedded sandbox does.

    Args:
        to_warm_up: lives before anything is counted.
        cycles, cancellations: lives of sandboxes.
        owned: sandboxes of an owner that is killed.
        crowd: sandboxes alive at the same time.
        at_once: cases that run at the same time.
        gone_s: seconds after their owner's death by which all must be gone.
    """

    to_warm_up: int
    cycles: int
    cancellations: int
    owned: int
    crowd: int
    at_once: int
    gone_s: float


NUMBERS = {
    "docker": Numbers(to_warm_up=8, cycles=16, cancellations=16, owned=16, crowd=12, at_once=8, gone_s=30),
    "embedded": Numbers(
        to_warm_up=24,
        cycles=int(os.environ.get("SANDBOX_RL_TEST_CYCLES", "300")),  # 1,000 for SPECIFICATION.md's figure
        cancellations=200,
        owned=64,
        crowd=256,
        at_once=64,
        gone_s=20 if BESIDE_OTHERS else 8,
    ),
}


@pytest.fixture
def numbers(backend: SandboxBackend) -> Numbers:
    return NUMBERS[backend.info.backend]


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
            result = await self.sandbox.exec("true", timeout=60)
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


@dataclass(frozen=True)
class Tier:
    """How one tier is run, and the seconds within which its sandboxes must be gone."""

    backend: str
    gone_s: float
    count: int
    user: int = 0


TIERS = {
    "embedded": Tier("embedded", gone_s=8, count=4),
    "embedded-user": Tier("embedded", gone_s=8, count=4, user=USER),
    "docker": Tier("docker", gone_s=30, count=3),
}


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> Tier:
    made = TIERS[request.param]
    if made.backend == "docker":
        request.getfixturevalue("engine")
    if made.user and os.getuid() != 0:
        pytest.skip("an ordinary user runs the other tier's test as himself")
    return made
