"""How the contract makes each backend. A further one is one more line here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sandbox_rl.registry import look_beside
from sandbox_rl.sandboxes.base import SandboxBackend, SandboxLimits
from sandbox_rl.sandboxes.config import EmbeddedSettings, PoolSettings

__all__ = ["BACKENDS", "ENGINE_VARIABLE", "ISOLATING", "RAY_VARIABLE", "docker", "embedded"]

ENGINE_VARIABLE = "SANDBOX_RL_TEST_ENGINE"
"""Address of the Docker engine that the tests have started."""

RAY_VARIABLE = "SANDBOX_RL_TEST_RAY"
"""Address of the Ray cluster that the tests have started."""


def embedded(limits: SandboxLimits) -> SandboxBackend:
    from sandbox_rl.sandboxes.embedded import EmbeddedBackend

    return EmbeddedBackend(EmbeddedSettings(limits=limits))


def pooled(limits: SandboxLimits) -> SandboxBackend:
    """A backend of one's own behind the pool: it has the methods of the Protocol and no other."""
    look_beside(Path(__file__).parents[2] / "examples")
    from own_backend import Counted

    return Counted(limits=limits).pooled(PoolSettings())


def docker(limits: SandboxLimits) -> SandboxBackend:
    """Containers on the tests' own engine."""
    from sandbox_rl.sandboxes.docker.backend import DockerBackend

    from ..docker_engine import settings_for

    return DockerBackend(settings=settings_for(os.environ[ENGINE_VARIABLE], limits))


def ray(limits: SandboxLimits) -> SandboxBackend:
    """Embedded sandboxes on two nodes of the tests' own cluster."""
    from sandbox_rl.sandboxes.ray.backend import RayBackend

    from ..ray_cluster import settings_for

    return RayBackend(settings_for(os.environ[RAY_VARIABLE], limits))


BACKENDS: dict[str, Callable[[SandboxLimits], SandboxBackend]] = {
    "docker": docker,
    "embedded": embedded,
    "pooled": pooled,
    "ray": ray,
}
"""What fulfils the contract."""

ISOLATING = ("embedded", "docker")
"""Those that the cases attack: the others only stand in front of one of these."""
