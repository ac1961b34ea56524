"""A managed server that is started again when it dies or hangs, with the weights that it should have."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Protocol

from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.server import ManagedServer

__all__ = ["KeepsWeights", "SupervisedServer"]

logger = logging.getLogger(__name__)


class KeepsWeights(Protocol):
    """Whoever publishes weights, as the supervisor of a server needs it."""

    async def wanted(self) -> None:
        """Wait until servers should run: while they sleep their memory is the trainer's."""
        ...

    async def restore(self, server: VLLMServer) -> None:
        """Give a server that was started again the weights that were published last.

        Raises:
            EngineFault: nobody can.
        """
        ...


class SupervisedServer:
    """A `ServerSource`: the server is watched while it is entered.

    Args:
        restarts: how often it may be started again.
    """

    def __init__(self, server: ManagedServer, weights: KeepsWeights, *, restarts: int) -> None:
        self._server = server
        self._weights = weights
        self._left = self._restarts = restarts
        self._watcher: asyncio.Task[None] | None = None

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """The one server."""
        return self._server.servers

    @property
    def served_model(self) -> str:
        """The name that requests must carry."""
        return self._server.served_model

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens, by the server's own word."""
        return self._server.max_context

    @property
    def restarts_left(self) -> int:
        """How often it may still be started again."""
        return self._left

    async def recovered(self, server: VLLMServer) -> None:
        """Wait for a restart that is going on.

        Raises:
            EngineFault: the server is gone for good.
        """
        await self._server.recovered(server)

    async def __aenter__(self) -> SupervisedServer:
        await self._server.__aenter__()
        self._watcher = asyncio.create_task(self._watch(), name="watch vLLM")
        return self

    async def __aexit__(self, *exc: object) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        await self._server.stop()

    async def _watch(self) -> None:
        while True:
            reason = await self._server.failed()
            await self._weights.wanted()
            if not self._left:
                why = f"the vLLM server failed for good after {self._restarts} restarts: {reason}"
                break
            self._left -= 1
            number = self._restarts - self._left
            logger.warning("vLLM server: %s; restart %d of %d", reason, number, self._restarts)
            try:
                await self._server.restart(self._weights.restore)
            except Exception as error:
                why = f"the vLLM server could not be restarted: {error}"
                break
        logger.error("%s", why)
        self._server.give_up(why)
