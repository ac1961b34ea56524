"""Where a policy's servers come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sandbox_rl.policies.vllm.api import VLLMServer

__all__ = ["ServerSource"]


class ServerSource(Protocol):
    """Gives servers that are up, and waits for one that is being restarted."""

    async def __aenter__(self) -> ServerSource: ...

    async def __aexit__(self, *exc: object) -> None: ...

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """The servers, open and ready."""
        ...

    @property
    def served_model(self) -> str:
        """The name that requests must carry."""
        ...

    @property
    def max_context(self) -> int:
        """Longest sequence that every server takes, in tokens."""
        ...

    async def recovered(self, server: VLLMServer) -> None:
        """Wait until `server` serves the newest weights, where someone is restarting it.

        Raises:
            EngineFault: nobody can.
        """
        ...
