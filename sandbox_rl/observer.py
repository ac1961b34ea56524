"""What sees episodes as they happen: live views, progress, occupancy, journals.

All methods are called in the event loop of the episodes, one at a time, and none may block: what takes long
belongs into a queue. An exception in one is a defect of ours (or a full disk); it never looks like the
policy's doing and ends the run as itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec

from sandbox_rl.agents.base import AgentTurn, EpisodeRequest
from sandbox_rl.types import MalformedCall, Observation, Rollout, StopReason, ToolCall, Turn

P = ParamSpec("P")


class Observer:
    """Sees every step of every episode, and does nothing; a subclass overrides what it wants to see."""

    def started(self, episode: EpisodeRequest, prompt_ids: tuple[int, ...]) -> None:
        """Its sandbox is there, and the agent is about to act; again for each `attempt`."""

    def sampling(self, episode: EpisodeRequest) -> None:
        """The agent is asked for its next turn."""

    def sampled(self, episode: EpisodeRequest, turn: AgentTurn) -> None:
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
        self._call(episode, rollout)


class ObserverFailed(Exception):
    """An observer raised `cause`. Kept separate from everything that an episode may raise."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class Observers(Observer):
    """Several observers as one, in their order; what one raises comes out as `ObserverFailed`."""

    def __init__(self, *observers: Observer | None) -> None:
        self._observers = tuple(observer for observer in observers if observer is not None)

    @staticmethod
    def _each(event: Callable[Concatenate[Observers, P], None]) -> Callable[Concatenate[Observers, P], None]:
        def tell(self: Observers, /, *args: P.args, **kwargs: P.kwargs) -> None:
            for observer in self._observers:
                try:
                    getattr(observer, event.__name__)(*args, **kwargs)
                except ObserverFailed:
                    raise
                except Exception as error:
                    raise ObserverFailed(error) from error

        return tell

    started = _each(Observer.started)
    sampling = _each(Observer.sampling)
    sampled = _each(Observer.sampled)
    calling = _each(Observer.calling)
    observed = _each(Observer.observed)
    turn = _each(Observer.turn)
    ended = _each(Observer.ended)
    rolled_out = _each(Observer.rolled_out)
