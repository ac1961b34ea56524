"""External servers of a run that publishes: one that someone starts again gets the newest weights again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from sandbox_rl.errors import EngineFault
from sandbox_rl.http_client import Refused, Unreachable
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.external import ExternalServers
from sandbox_rl.policies.vllm.supervisor import KeepsWeights

__all__ = ["RestoredServers"]

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks at a server's version."""


class RestoredServers:
    """A `ServerSource`. Who samples asks each server for its version (`policy.py`) and waits meanwhile.

    Args:
        weights: published last; `weights.restore` looks itself whether they are missing.
    """

    def __init__(self, external: ExternalServers, weights: KeepsWeights) -> None:
        self._external = external
        self._weights = weights
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """All of them."""
        return self._external.servers

    @property
    def served_model(self) -> str:
        """The name that requests must carry."""
        return self._external.served_model

    @property
    def max_context(self) -> int:
        """Longest sequence that every server takes, in tokens."""
        return self._external.max_context

    async def recovered(self, server: VLLMServer) -> None:
        """Wait a while for it to answer again."""
        await self._external.recovered(server)

    async def __aenter__(self) -> RestoredServers:
        await self._external.__aenter__()
        self._watchers = [
            asyncio.create_task(self._watch(server), name=f"watch {server.address}")
            for server in self._external.servers
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await self._external.__aexit__(*exc)

    async def _watch(self, server: VLLMServer) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if await server.weights_version() is None:
                    await self._weights.restore(server)
                    if (version := await server.weights_version()) is not None:
                        logger.warning("%s was started again; it got version %d", server.address, version)
            except (Refused, Unreachable):
                pass  # whoever runs it starts it again, or not: its turns are waited for
            except EngineFault as error:
                logger.warning("%s: the newest weights are sent again: %s", server.address, error)
