"""The journal as an observer of episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.journal.writer import Journal
from sandbox_rl.observer import Observer
from sandbox_rl.types import Rollout, StopReason, Turn

__all__ = ["JournalObserver"]


class JournalObserver(Observer):
    """Writes what happens, when it happens.

    Args:
        context: gives further fields of an episode, such as the phase or the step.
    """

    def __init__(
        self, journal: Journal, context: Callable[[EpisodeRequest], Mapping[str, Any]] = lambda _: {}
    ) -> None:
        self._journal = journal
        self._context = context

    def started(self, episode: EpisodeRequest, prompt_ids: tuple[int, ...]) -> None:
        """See `Observer.started`."""
        self._journal.started(episode.id, episode.task, prompt_ids, **self._fields(episode))

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        """See `Observer.turn`."""
        self._journal.turn(episode.id, turn)

    def ended(self, episode: EpisodeRequest, stop: StopReason | None) -> None:
        """See `Observer.ended`."""
        if stop is None:
            self._journal.abandoned(episode.id)

    def rolled_out(self, episode: EpisodeRequest, rollout: Rollout) -> None:
        """See `Observer.rolled_out`."""
        self._journal.ended(rollout, **self._fields(episode))

    def _fields(self, episode: EpisodeRequest) -> dict[str, Any]:
        return {"seed": episode.seed, **self._context(episode)}
