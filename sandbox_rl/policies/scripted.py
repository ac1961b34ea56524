"""A policy that says what it is told: for tests, debugging and expert episodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from sandbox_rl.errors import EngineFault, UserError
from sandbox_rl.policies.base import PolicySession, TurnSampling
from sandbox_rl.types import Action

__all__ = ["Script", "ScriptedPolicy"]

Script = Callable[[str, int, Sequence[int]], Sequence[int]]
"""`(episode id, turn index from 0, ids so far) -> ids of this turn`, end-of-turn id included."""


class ScriptedPolicy:
    """Plays a script. Every token has log-prob 0.0: the script is certain of itself.

    Args:
        script: what to say; an exception in it is an `EngineFault`, as an engine's would be.
        max_context: longest sequence in tokens.
        delay_s: seconds that each turn takes.
    """

    def __init__(self, script: Script, *, max_context: int = 1 << 20, delay_s: float = 0.0) -> None:
        self._script = script
        self._max_context = max_context
        self._delay_s = delay_s

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens."""
        return self._max_context

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        """Open one episode's session."""
        yield _ScriptedSession(self._script, episode_id, self._delay_s)

    async def __aenter__(self) -> ScriptedPolicy:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class _ScriptedSession:
    def __init__(self, script: Script, episode_id: str, delay_s: float) -> None:
        self._script = script
        self._episode_id = episode_id
        self._delay_s = delay_s
        self._turn = 0

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        if self._delay_s:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(self._delay_s)
        try:
            ids = tuple(self._script(self._episode_id, self._turn, prompt_ids))
        except UserError:
            raise
        except Exception as error:
            raise EngineFault(
                f"the script of episode {self._episode_id!r} failed at turn {self._turn}: {error!r}"
            ) from error
        self._turn += 1
        kept = ids[: sampling.max_tokens]
        return Action(kept, (0.0,) * len(kept), "stop" if len(kept) == len(ids) else "length")
