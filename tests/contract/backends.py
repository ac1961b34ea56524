"""How the contract makes each backend. A further one is one more line here."""

from __future__ import annotations

from collections.abc import Callable

from sandbox_rl.sandboxes.base import SandboxBackend, SandboxLimits

__all__ = ["BACKENDS", "embedded"]


def embedded(limits: SandboxLimits) -> SandboxBackend:
    from sandbox_rl.sandboxes.embedded import EmbeddedBackend

    return EmbeddedBackend(limits=limits)


BACKENDS: dict[str, Callable[[SandboxLimits], SandboxBackend]] = {"embedded": embedded}
