"""The Protocols every policy engine fulfils: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from sandbox_rl.types import Action

__all__ = ["Policy", "PolicySession", "Sampling"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one turn.

    Args:
        max_tokens: hard cap of this turn.
        temperature: 0 is greedy.
        top_p, top_k: 1.0 and 0 sample the whole distribution, as training requires.
        seed: of this very turn; the same prompt, seed and weights give the same ids where the
            engine can promise that.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class PolicySession(Protocol):
    """One episode's conversation with the policy."""

    async def act(self, prompt_ids: Sequence[int], sampling: Sampling, *, timeout: float) -> Action:
        """Sample one turn after `prompt_ids`, until an end-of-turn id or `sampling.max_tokens`.

        Raises:
            TimeoutError: no answer within `timeout` seconds, the episode's remaining budget.
            EngineFault: the engine broke, or exceeded its own time-out and retries.
        """
        ...


class Policy(Protocol):
    """A policy engine. A session tells it which episodes are alive (batching, server affinity)."""

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens, prompt and completion together."""
        ...

    def session(self, episode_id: str) -> AbstractAsyncContextManager[PolicySession]:
        """Open one episode's session."""
        ...

    async def __aenter__(self) -> Policy: ...

    async def __aexit__(self, *exc: object) -> None: ...
