"""How the contract makes each backend. A further one is one more line here."""

from __future__ import annotations

from collections.abc import Callable

from sandbox_rl.sandboxes.base import SandboxBackend, SandboxLimits

__all__ = ["BACKENDS", "ISOLATING", "embedded"]


def embedded(limits: SandboxLimits) -> SandboxBackend:
    from sandbox_rl.sandboxes.embedded import EmbeddedBackend

    return EmbeddedBackend(limits=limits)


def pooled(limits: SandboxLimits) -> SandboxBackend:
    """The embedded backend behind the pool, which must keep the contract that it stands in front of."""
    from sandbox_rl.sandboxes.embedded import EmbeddedBackend
    from sandbox_rl.sandboxes.pool import SandboxPool

    return SandboxPool(EmbeddedBackend(limits=limits), limits=limits)


BACKENDS: dict[str, Callable[[SandboxLimits], SandboxBackend]] = {"embedded": embedded, "pooled": pooled}
"""What fulfils the contract."""

ISOLATING = ("embedded",)
"""Those that the cases attack: the others only stand in front of one of these."""
