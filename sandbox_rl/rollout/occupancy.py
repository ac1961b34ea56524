"""Whether the policy's engine had work all the time that episodes ran.

While an episode runs a command the engine has nothing to do for it. Enough episodes in flight hide that: then
some turn is always being sampled. Two numbers tell, whatever the engine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sandbox_rl.agents.base import AgentTurn, EpisodeRequest
from sandbox_rl.observer import Observer
from sandbox_rl.types import StopReason


class Occupancy(Observer):
    """Integrates over time how many turns are being sampled. For one event loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._alive: set[str] = set()
        self._turns: set[str] = set()
        self.asked = 0
        """Episodes that have been asked for and are not scored yet; whoever asks counts them."""
        self._since = clock()
        self._alive_s = self._idle_s = self._turn_s = 0.0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Episodes that are alive, turns that are being sampled, and episodes that wait; for any thread."""
        return len(self._alive), len(self._turns), max(0, self.asked - len(self._alive))

    def started(self, episode: EpisodeRequest, prompt_ids: tuple[int, ...]) -> None:
        """An episode is alive until it has ended."""
        self._advance()
        self._alive.add(episode.id)

    def sampling(self, episode: EpisodeRequest) -> None:
        """A turn is being sampled until it is there, or the episode has ended."""
        self._advance()
        self._turns.add(episode.id)

    def sampled(self, episode: EpisodeRequest, turn: AgentTurn) -> None:
        self._advance()
        self._turns.discard(episode.id)

    def ended(self, episode: EpisodeRequest, stop: StopReason | None) -> None:
        self._advance()
        self._turns.discard(episode.id)
        self._alive.discard(episode.id)

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
        if self._alive:
            self._alive_s += passed
            self._turn_s += passed * len(self._turns)
            if not self._turns:
                self._idle_s += passed
