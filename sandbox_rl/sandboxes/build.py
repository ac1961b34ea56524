"""From settings to the backends that make sandboxes on the machine where they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox_rl.sandboxes.config import DockerSettings, EmbeddedSettings
from sandbox_rl.sandboxes.embedded import EmbeddedBackend

if TYPE_CHECKING:
    from sandbox_rl.sandboxes.docker.backend import DockerBackend

__all__ = ["node_backend"]


def node_backend(settings: EmbeddedSettings | DockerSettings) -> EmbeddedBackend | DockerBackend:
    """The backend of one machine that these settings belong to, without a pool."""
    if isinstance(settings, DockerSettings):
        from sandbox_rl.sandboxes.docker.backend import DockerBackend

        return DockerBackend(settings=settings)
    return EmbeddedBackend(settings=settings)
