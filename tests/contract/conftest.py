"""One entered backend per kind and module; a fresh sandbox per test."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from sandbox_rl.sandboxes.base import Sandbox, SandboxBackend, SandboxLimits

from ..ray_cluster import RayCluster, ray_cluster
from .backends import BACKENDS, RAY_VARIABLE

LIMITS = SandboxLimits()
ONCE = {
    "pooled": ("TestRepair", "TestExec", "TestFiles", "TestListing", "TestGetFiles", "TestAnswer"),
    # Names, contents and typed errors cross the border of a process.
    "ray": ("TestRepair", "TestExec", "TestAnswer"),
}
"""Backends that hand every call on to sandboxes of another one here, and what such a sandbox does by itself:
there `TestForwarding` asks the heart of it."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = []
    for item in items:
        if isinstance(item, pytest.Function) and item.path.name == "test_sandboxes.py" and item.cls:
            made_by = getattr(item, "callspec").params.get("backend")  # noqa: B009
            if item.cls.__name__ in ONCE.get(made_by, ("TestForwarding",)):
                left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


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
