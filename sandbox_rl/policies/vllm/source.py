"""Servers of one model, for those who sample from them and those who publish weights to them.

Those that someone else runs, or another process of this run, are here; those of this process in `fleet.py`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from sandbox_rl.errors import SetupError
from sandbox_rl.http_client import Address
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.check import ServerFacts, TokenizerProbe, check_server, check_tokenizer

ASK_AGAIN_S = 0.25
"""Between two tries to find a server that answers."""


class Servers(ABC):
    """An async context manager: entered, all of them answer and fit.

    Args:
        servers: at least one; the same over restarts.
    """

    def __init__(self, servers: Sequence[VLLMServer]) -> None:
        self.servers = tuple(servers)
        self.facts: Sequence[ServerFacts] = ()
        """What each says about itself, once they are entered."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None: ...

    @property
    def served_model(self) -> str:
        """The name that requests must carry."""
        return self.facts[0].served_model

    @property
    def max_context(self) -> int:
        """Longest sequence that every server takes, in tokens."""
        return min(facts.max_context for facts in self.facts)

    @property
    def up(self) -> Sequence[VLLMServer]:
        """Those that can be given weights now; the others get them when they are started again. All, where
        someone else runs them and answers for them."""
        return self.servers

    async def some_up(self) -> None:
        """Wait until `up` has one; for all of them, where nobody here gives one that comes later the newest
        weights.

        Raises:
            EngineFault: one of all is gone permanently.
        """
        for server in self.servers:
            await self.recovered(server)

    @abstractmethod
    async def recovered(self, server: VLLMServer) -> None:
        """Wait until `server` serves the newest weights, where someone is restarting it.

        Raises:
            EngineFault: it is gone permanently.
        """

    async def replace(self, server: VLLMServer, why: str) -> bool:
        """End a server that did not take its weights and have another started; False where nobody can."""
        return False


class ExternalServers(Servers):
    """Servers that someone else runs; checked when entered, never restarted.

    Args:
        engine: vLLM's name of the weight transfer that will be used; None where nothing is published.
        startup_timeout_s: seconds within which they must answer; they may be starting just now.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        needed_context: int,
        tokenizer: TokenizerProbe | None,
        startup_timeout_s: float,
        engine: str | None = None,
    ) -> None:
        super().__init__([VLLMServer(address) for address in addresses])
        self._startup_timeout_s = startup_timeout_s
        self._needed_context = needed_context
        self._tokenizer = tokenizer
        self._engine = engine

    async def __aenter__(self) -> Self:
        try:
            for server in self.servers:
                await server.open()
                await self.recovered(server)  # what is wrong, the check below says
            self.facts = [
                await check_server(s, needed_context=self._needed_context, engine=self._engine)
                for s in self.servers
            ]
            names = {facts.served_model for facts in self.facts}
            if len(names) > 1:
                raise SetupError(f"policy.base_urls: they serve {sorted(names)}, expected one model")
            if self._tokenizer is not None:
                for server in self.servers:
                    await check_tokenizer(server, self.served_model, self._tokenizer)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for server in self.servers:
            await server.close()

    async def recovered(self, server: VLLMServer) -> None:
        """Wait a while for it to answer again: someone may be restarting it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._startup_timeout_s):
                while not await server.healthy():  # noqa: ASYNC110 (a process to wait for, not a task)
                    await asyncio.sleep(ASK_AGAIN_S)
