"""Managed servers, each started again when it dies or hangs, with the weights that it should have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.fleet import ManagedServers
from sandbox_rl.policies.vllm.server import ManagedServer

__all__ = ["KeepsWeights", "SupervisedServers"]

logger = logging.getLogger(__name__)


class KeepsWeights(Protocol):
    """Whoever publishes weights, as the supervisor of servers needs it."""

    async def wanted(self) -> None:
        """Wait until servers should run: while they sleep their memory is the trainer's."""
        ...

    async def restore(self, server: VLLMServer) -> None:
        """Give a server that was started again the weights that were published last.

        Raises:
            EngineFault: nobody can.
        """
        ...


class SupervisedServers:
    """A `ServerSource`: all servers are watched while it is entered; what happens to one stops no other.

    Args:
        restarts: how often each may be started again.
    """

    def __init__(self, fleet: ManagedServers, weights: KeepsWeights, *, restarts: int) -> None:
        self._fleet = fleet
        self._weights = weights
        self._restarts = restarts
        self._left = [restarts for _ in fleet.members]
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """All of them."""
        return self._fleet.servers

    @property
    def served_model(self) -> str:
        """The name that requests must carry."""
        return self._fleet.served_model

    @property
    def max_context(self) -> int:
        """Longest sequence that every server takes, in tokens."""
        return self._fleet.max_context

    @property
    def restarts_left(self) -> Sequence[int]:
        """How often each may still be started again."""
        return tuple(self._left)

    async def recovered(self, server: VLLMServer) -> None:
        """Wait for a restart that is going on.

        Raises:
            EngineFault: the server is gone for good.
        """
        await self._fleet.recovered(server)

    async def __aenter__(self) -> SupervisedServers:
        await self._fleet.__aenter__()
        self._watchers = [
            asyncio.create_task(self._watch(number, member), name=f"watch vLLM {number}")
            for number, member in enumerate(self._fleet.members)
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await self._fleet.stop()

    async def _watch(self, number: int, server: ManagedServer) -> None:
        several = len(self._fleet.members) > 1
        name = f"vLLM server {number} of {len(self._fleet.members)}" if several else "vLLM server"
        while True:
            reason = await server.failed()
            await self._weights.wanted()
            if not self._left[number]:
                why = f"the {name} failed for good after {self._restarts} restarts: {reason}"
                break
            self._left[number] -= 1
            done = self._restarts - self._left[number]
            logger.warning("%s: %s; restart %d of %d", name, reason, done, self._restarts)
            try:
                await server.restart(self._weights.restore)
            except Exception as error:
                why = f"the {name} could not be restarted: {error}"
                break
        logger.error("%s", why)
        server.give_up(why)
