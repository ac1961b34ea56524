"""Servers of one model, for those who sample from them and those who publish weights to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.check import ServerFacts

__all__ = ["Servers"]


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
    @abstractmethod
    def up(self) -> Sequence[VLLMServer]:
        """Those that can be given weights now; the others get them when they are started again."""

    @abstractmethod
    async def some_up(self) -> None:
        """Wait until `up` has one.

        Raises:
            EngineFault: one of all is gone for good.
        """

    @abstractmethod
    async def recovered(self, server: VLLMServer) -> None:
        """Wait until `server` serves the newest weights, where someone is restarting it.

        Raises:
            EngineFault: it is gone for good.
        """

    @abstractmethod
    async def replace(self, server: VLLMServer, why: str) -> bool:
        """End a server that did not take its weights and have another started; False where nobody can."""
