"""What sees episodes as they happen: live views, progress, occupancy, journals.

All methods are called in the event loop of the episodes, one at a time, and none may block: what takes long
belongs into a queue. An exception in one is a defect of ours (or a full disk); it never looks like the
policy's doing and ends the run as itself.
"""

from __future__ import annotations

from collections.abc import Callable

from sandbox_rl.agents.base import EpisodeRequest, Said
from sandbox_rl.types import MalformedCall, Observation, Rollout, StopReason, ToolCall, Turn

__all__ = ["EachRollout", "Observer", "ObserverFailed", "Observers"]


class Observer:
    """Sees every step of every episode, and does nothing; a subclass overrides what it wants to see."""

    def started(self, episode: EpisodeRequest, prompt_ids: tuple[int, ...]) -> None:
        """Its sandbox is there, and the agent is about to act; again for each `attempt`."""

    def sampling(self, episode: EpisodeRequest) -> None:
        """The agent is asked for its next turn."""

    def said(self, episode: EpisodeRequest, said: Said) -> None:
        """The turn was sampled."""

    def calling(self, episode: EpisodeRequest, call: ToolCall | MalformedCall) -> None:
        """A call is about to run."""

    def observed(self, episode: EpisodeRequest, observation: Observation) -> None:
        """What came of it, or what answers a turn without a call."""

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        """A turn is complete, before the next one is asked for.

        Its observation ids are part of the trajectory only if a further turn is sampled.
        """

    def ended(self, episode: EpisodeRequest, stop: StopReason | None) -> None:
        """The agent is done. None: cancelled, or it failed on our side. Always follows `started`."""

    def rolled_out(self, episode: EpisodeRequest, rollout: Rollout) -> None:
        """The episode is scored, or lost to a fault for good: once for each that was not cancelled."""


class EachRollout(Observer):
    """Calls a function with every rollout."""

    def __init__(self, call: Callable[[EpisodeRequest, Rollout], None]) -> None:
        self._call = call

    def rolled_out(self, episode: EpisodeRequest, rollout: Rollout) -> None:
        """See `Observer.rolled_out`."""
        self._call(episode, rollout)


class ObserverFailed(Exception):
    """An observer raised `cause`. Kept apart from everything that an episode may raise."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class Observers(Observer):
    """Several observers as one, in their order; what one raises comes out as `ObserverFailed`."""

    def __init__(self, *observers: Observer | None) -> None:
        self._observers = tuple(observer for observer in observers if observer is not None)

    def started(self, episode: EpisodeRequest, prompt_ids: tuple[int, ...]) -> None:
        """See `Observer.started`."""
        self._tell(lambda observer: observer.started(episode, prompt_ids))

    def sampling(self, episode: EpisodeRequest) -> None:
        """See `Observer.sampling`."""
        self._tell(lambda observer: observer.sampling(episode))

    def said(self, episode: EpisodeRequest, said: Said) -> None:
        """See `Observer.said`."""
        self._tell(lambda observer: observer.said(episode, said))

    def calling(self, episode: EpisodeRequest, call: ToolCall | MalformedCall) -> None:
        """See `Observer.calling`."""
        self._tell(lambda observer: observer.calling(episode, call))

    def observed(self, episode: EpisodeRequest, observation: Observation) -> None:
        """See `Observer.observed`."""
        self._tell(lambda observer: observer.observed(episode, observation))

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        """See `Observer.turn`."""
        self._tell(lambda observer: observer.turn(episode, turn))

    def ended(self, episode: EpisodeRequest, stop: StopReason | None) -> None:
        """See `Observer.ended`."""
        self._tell(lambda observer: observer.ended(episode, stop))

    def rolled_out(self, episode: EpisodeRequest, rollout: Rollout) -> None:
        """See `Observer.rolled_out`."""
        self._tell(lambda observer: observer.rolled_out(episode, rollout))

    def _tell(self, event: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                event(observer)
            except ObserverFailed:
                raise
            except Exception as error:
                raise ObserverFailed(error) from error
