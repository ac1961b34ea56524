"""A policy that says again what it said before: for replays, tests and reports of defects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import KW_ONLY, dataclass

from sandbox_rl.errors import DataError, EngineFault
from sandbox_rl.policies.base import PolicySession, TurnSampling
from sandbox_rl.types import Action, StopReason, Trajectory

Recordings = Callable[[str], Trajectory]
"""Episode id → what was recorded of it.

Raises:
    DataError: there is no record of it.
"""


class AnotherWay(DataError):
    """An episode asks for what its record does not hold: it has gone another way than it was recorded."""


@dataclass(eq=False)
class RecordedPolicy:
    """Plays the recorded actions of each episode: ids, log-probs and weight versions as they were sampled.

    What the record ended with comes again: a time-out of the policy, a fault of ours.

    Args:
        recordings: opened in the event loop's thread and closed together with the policy.
        max_context: longest sequence in tokens.
        strict: refuse to go on after a sequence that is not the recorded one, whose log-probs would be
            those of another. A comparison of records looks for just that, and goes on.
    """

    recordings: AbstractContextManager[Recordings]
    _: KW_ONLY
    max_context: int = 1 << 20
    strict: bool = True

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        """Open one episode's session.

        Raises:
            DataError: there is no record of the episode.
        """
        yield _RecordedSession(episode_id, self._opened(episode_id), strict=self.strict)

    async def __aenter__(self) -> RecordedPolicy:
        self._opened = self.recordings.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.recordings.__exit__(None, None, None)


@dataclass
class _RecordedSession:
    episode_id: str
    recorded: Trajectory
    strict: bool
    turn: int = 0

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        """The recorded turn.

        Raises:
            TimeoutError, EngineFault: the record ends so.
            AnotherWay: there is no such turn, or it does not follow this sequence.
        """
        turns, number = self.recorded.turns, self.turn
        if number >= len(turns):
            if self.recorded.stop is StopReason.TIMEOUT:
                raise TimeoutError
            if self.recorded.stop is StopReason.INFRA_FAULT:
                raise EngineFault(self.recorded.fault)
            raise AnotherWay(
                f"episode {self.episode_id!r} asks for turn {number + 1}, but its record ended after "
                f"{len(turns)} turns by {self.recorded.stop.value}; it has gone another way"
            )
        action = turns[number].action
        if self.strict:
            self._check(prompt_ids, action, sampling.max_tokens)
        self.turn += 1
        return action

    def _check(self, sequence: Sequence[int], action: Action, most: int) -> None:
        before = [*self.recorded.prompt_ids]
        for turn in self.recorded.turns[: self.turn]:
            before += [*turn.action.token_ids, *turn.observation_ids]
        if tuple(sequence) != tuple(before):
            place = next((i for i, (a, b) in enumerate(zip(sequence, before, strict=False)) if a != b), None)
            where = min(len(sequence), len(before)) if place is None else place
            raise AnotherWay(
                f"episode {self.episode_id!r}, turn {self.turn + 1}: what comes before it differs from the "
                f"record from token {where} on ({len(sequence)} tokens now, {len(before)} recorded); play it "
                "with the recipe, data and tokenizer that it was recorded with"
            )
        if len(action.token_ids) > most:
            raise AnotherWay(
                f"episode {self.episode_id!r}, turn {self.turn + 1}: {len(action.token_ids)} tokens were "
                f"recorded, but the budgets leave {most}; play it with the recorded budgets"
            )
