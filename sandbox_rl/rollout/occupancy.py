"""Whether the policy's engine had work all the time that episodes ran.

While an episode runs a command the engine has nothing to do for it. Enough episodes in flight hide that: then
some turn is always being sampled. Two numbers tell, whatever the engine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sandbox_rl.policies.base import PolicySession, TurnSampling
from sandbox_rl.types import Action

__all__ = ["Occupancy"]


class Occupancy:
    """Integrates over time how many turns are being sampled. For one event loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._episodes = self._turns = 0
        self._since = clock()
        self._alive_s = self._idle_s = self._turn_s = 0.0

    @contextmanager
    def episode(self, session: PolicySession) -> Iterator[PolicySession]:
        """An episode is alive while open; yields its session with every turn counted."""
        self._advance()
        self._episodes += 1
        try:
            yield _Counted(self, session)
        finally:
            self._advance()
            self._episodes -= 1

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A turn is being sampled while open."""
        self._advance()
        self._turns += 1
        try:
            yield
        finally:
            self._advance()
            self._turns -= 1

    def take(self) -> dict[str, float]:
        """Since the last call, over the time in which any episode was alive; empty if none was.

        Returns:
            `perf/turns_in_flight`, the mean number of turns being sampled, and `perf/engine_idle_s`, seconds
            in which it was 0: the engine was starved, and more `rollout.concurrency` would help.
        """
        self._advance()
        alive, idle, turns = self._alive_s, self._idle_s, self._turn_s
        self._alive_s = self._idle_s = self._turn_s = 0.0
        if not alive:
            return {}
        return {"perf/turns_in_flight": turns / alive, "perf/engine_idle_s": idle}

    def _advance(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        if self._episodes:
            self._alive_s += passed
            self._turn_s += passed * self._turns
            if not self._turns:
                self._idle_s += passed


class _Counted:
    def __init__(self, occupancy: Occupancy, session: PolicySession) -> None:
        self._occupancy = occupancy
        self._session = session

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        with self._occupancy.turn():
            return await self._session.act(prompt_ids, sampling, timeout=timeout)
