"""The Protocols every policy engine fulfils: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from sandbox_rl.settings import Settings
from sandbox_rl.types import Action


class Sampling(Settings):
    """How turns are sampled. Training needs the whole distribution: leave top_p and top_k alone."""

    temperature: float = Field(1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """1 samples the whole distribution."""
    top_k: int = Field(0, ge=0)
    """0 samples the whole distribution."""

    def turn(self, *, max_tokens: int, seed: int = 0) -> TurnSampling:
        """The same for one turn."""
        return TurnSampling(max_tokens=max_tokens, seed=seed, **self.model_dump())


class TurnSampling(Sampling):
    """How one turn is sampled."""

    max_tokens: int
    """Hard cap of this turn."""
    seed: int = 0
    """Of this very turn; the same prompt, seed and weights give the same ids where the engine can promise
    that."""


class WeightVersion(Protocol):
    """Where a policy reads how many updates the weights that it samples with have received.

    Whoever publishes weights writes it, and nobody else keeps a copy.
    """

    @property
    def value(self) -> int:
        """The number of updates."""
        ...


@dataclass(frozen=True, slots=True)
class FixedVersion:
    """Of weights that nobody trains."""

    value: int = 0


UNTRAINED = FixedVersion()


class PolicySession(Protocol):
    """One episode's conversation with the policy."""

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
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
