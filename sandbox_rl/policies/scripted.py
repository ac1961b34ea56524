"""A policy that says what it is told: for tests, debugging and expert episodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass

from sandbox_rl.errors import EngineFault, UserError
from sandbox_rl.policies.base import PolicySession, TurnSampling
from sandbox_rl.types import Action

Script = Callable[[str, int, Sequence[int]], Sequence[int]]
"""`(episode id, turn index from 0, ids so far) -> ids of this turn`, end-of-turn id included."""


@dataclass(eq=False)
class ScriptedPolicy:
    """Plays a script. Every token has log-prob 0.0: the script is certain of itself.

    Args:
        script: what to say; an exception in it is an `EngineFault`, as an engine's would be.
        max_context: longest sequence in tokens.
        delay_s: seconds that each turn takes.
    """

    script: Script
    _: KW_ONLY
    max_context: int = 1 << 20
    delay_s: float = 0.0

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        """Open one episode's session."""
        yield _ScriptedSession(self.script, episode_id, self.delay_s)

    async def __aenter__(self) -> ScriptedPolicy:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


@dataclass
class _ScriptedSession:
    script: Script
    episode_id: str
    delay_s: float
    turn: int = 0

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        if self.delay_s:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(self.delay_s)
        try:
            ids = tuple(self.script(self.episode_id, self.turn, prompt_ids))
        except UserError:
            raise
        except Exception as error:
            raise EngineFault(
                f"the script of episode {self.episode_id!r} failed at turn {self.turn}: {error!r}"
            ) from error
        self.turn += 1
        kept = ids[: sampling.max_tokens]
        return Action(kept, (0.0,) * len(kept), "stop" if len(kept) == len(ids) else "length")
