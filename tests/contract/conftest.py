"""One entered backend per kind and module; a fresh sandbox per test."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from sandbox_rl.sandboxes.base import Sandbox, SandboxBackend, SandboxLimits

from ..ray_cluster import RayCluster, ray_cluster
from .backends import BACKENDS, RAY_VARIABLE

LIMITS = SandboxLimits()


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv(RAY_VARIABLE, made.address)
        yield made


@pytest_asyncio.fixture(params=sorted(BACKENDS), scope="module", loop_scope="module")
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[SandboxBackend]:
    if request.param == "docker":
        request.getfixturevalue("engine")
    if request.param == "ray":
        request.getfixturevalue("cluster")
    async with BACKENDS[request.param](LIMITS) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox(backend: SandboxBackend) -> AsyncIterator[Sandbox]:
    async with backend.sandbox({"a.txt": b"alpha\n", "deep/er/b.bin": bytes(range(256))}) as made:
        yield made
