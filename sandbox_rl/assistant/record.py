"""What a conversation has come to so far, shown to a viewer as it happens."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from sandbox_rl.agents.base import Agent, EpisodeRequest, Said
from sandbox_rl.episode import closed
from sandbox_rl.observer import Observer
from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.types import MalformedCall, Observation, StopReason, ToolCall, Turn

__all__ = ["Record", "Viewer"]


class Viewer(Protocol):
    """Sees a conversation as it happens. Texts are the policy's: clean them before showing them."""

    def opened(self, info: SandboxInfo, files: int) -> None:
        """The sandbox is there."""
        ...

    def thinking(self) -> None:
        """The policy has been asked for its next turn."""
        ...

    def said(self, reasoning: str, words: str) -> None:
        """The policy's turn is here: what it says besides its calls."""
        ...

    def calling(self, call: ToolCall | MalformedCall) -> None:
        """A call is about to run."""
        ...

    def observed(self, observation: Observation) -> None:
        """What came of it."""
        ...

    def ended(self, stop: StopReason, answer: str | None) -> None:
        """An exchange is over; `answer` is what stands in the answer file after a submit."""
        ...


class Record(Observer):
    """The turns of all exchanges; the one that was interrupted as far as it came."""

    def __init__(self, agent: Agent, viewer: Viewer) -> None:
        self._agent = agent
        self._viewer = viewer
        self._turns: list[Turn] = []
        self._open: Turn | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """As a trajectory has them: nothing follows the last action."""
        return closed((*self._turns, *([self._open] if self._open is not None else [])))

    def user_spoke(self, ids: tuple[int, ...]) -> None:
        """Ids of what the user said after the last turn."""
        if self._turns:
            last = self._turns[-1]
            self._turns[-1] = replace(last, observation_ids=last.observation_ids + ids)

    def sampling(self, episode: EpisodeRequest) -> None:
        self._viewer.thinking()

    def said(self, episode: EpisodeRequest, said: Said) -> None:
        self._open = Turn(said.action, said.calls)
        self._viewer.said(*self._agent.spoken(said))

    def calling(self, episode: EpisodeRequest, call: ToolCall | MalformedCall) -> None:
        self._viewer.calling(call)

    def observed(self, episode: EpisodeRequest, observation: Observation) -> None:
        if self._open is not None:
            self._open = replace(self._open, observations=(*self._open.observations, observation))
        self._viewer.observed(observation)

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        self._turns.append(turn)
        self._open = None
