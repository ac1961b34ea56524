"""A sandbox without a computer: it knows what came of each call when the episode was recorded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from sandbox_rl.cassette.cassette import Cassette, as_written
from sandbox_rl.errors import DataError
from sandbox_rl.sandboxes.base import ANSWER_FILE, SandboxBackend, SandboxInfo
from sandbox_rl.sandboxes.config import BackendSettings, PoolSettings
from sandbox_rl.sandboxes.forwarding import ForwardingSandbox
from sandbox_rl.types import Answer, MalformedCall, Observation, StopReason, ToolCall, ToolFailure, Trajectory

Call = ToolCall | MalformedCall


class RecordedSettings(BackendSettings):
    """No sandboxes: what the commands of a run brought about is answered from its journal."""

    type: Literal["recorded"] = "recorded"
    journal: Path = Field()
    """A run's directory, or its journal, relative to the working directory."""

    def backend(self) -> RecordedBackend:
        """See `RecordedBackend`."""
        return RecordedBackend(self.journal)

    def pooled(self, pool: PoolSettings, *, run: str = "") -> SandboxBackend:
        """Without a pool: there is nothing to keep ready."""
        return self.backend()


class RecordedBackend:
    """Makes the sandboxes of recorded episodes.

    Args:
        journal: a run's directory, or its journal.
    """

    def __init__(self, journal: Path) -> None:
        self._cassette = Cassette(journal)

    @property
    def info(self) -> SandboxInfo:
        """Says plainly that nothing runs."""
        return SandboxInfo(backend="recorded", tier="none", lacks=("No command runs at all.",))

    @asynccontextmanager
    async def sandbox_of(self, episode_id: str) -> AsyncIterator[RecordedSandbox]:
        """The sandbox of this episode."""
        yield RecordedSandbox(episode_id, self._cassette.trajectory(episode_id))

    def sandbox(self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0) -> Any:
        """Of no episode.

        Raises:
            DataError: always; see `sandbox_of`.
        """
        raise DataError("sandbox.type recorded: it plays recorded episodes, expected to be asked for one")

    async def __aenter__(self) -> RecordedBackend:
        self._cassette.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._cassette.__exit__(*exc)


class RecordedSandbox(ForwardingSandbox):
    """Answers the calls of one episode in their recorded order, and gives its recorded answer.

    Only whole calls can be answered (`AnswersCalls`); a tool of your own that reaches around them finds no
    computer here.
    """

    def __init__(self, episode_id: str, recorded: Trajectory) -> None:
        self._episode_id = episode_id
        self._recorded = recorded
        self._answers = [
            (number, call, observation)
            for number, turn in enumerate(recorded.turns, 1)
            if turn.calls
            for call, observation in zip(turn.calls, turn.observations, strict=False)
        ]
        self._next = 0

    @property
    def id(self) -> str:
        """Of the episode."""
        return f"recorded-{self._episode_id}"

    async def answer(self, call: Call) -> Observation:
        """What came of this call when it was recorded.

        Raises:
            DataError: another call was recorded at this place.
        """
        if self._next >= len(self._answers):
            if self._recorded.stop is StopReason.TIMEOUT:  # no call was run any more
                return Observation("The time was up.", failure=ToolFailure.TIMEOUT)
            raise DataError(
                f"episode {self._episode_id!r}: call {_shown(call)} comes after the last recorded one; it "
                "has gone another way than it was recorded"
            )
        number, recorded, observation = self._answers[self._next]
        if _as_written(call) != _as_written(recorded):
            raise DataError(
                f"episode {self._episode_id!r}, turn {number}: call {_shown(call)} was not recorded there, "
                f"expected {_shown(recorded)}; play it with the recorded policy, or in a real sandbox"
            )
        self._next += 1
        return observation

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        """The recorded answer.

        Raises:
            DataError: the episode has not made all of the recorded calls.
        """
        if self._next < len(self._answers):
            raise DataError(
                f"episode {self._episode_id!r} ended after {self._next} of {len(self._answers)} recorded "
                "calls; it has gone another way than it was recorded"
            )
        return self._recorded.answer

    async def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        raise DataError(
            f"episode {self._episode_id!r}: {method.__name__} was asked of a recorded sandbox, "
            "expected tool calls only; use a real backend"
        )


def _as_written(call: Call) -> Any:
    return as_written(call.reason if isinstance(call, MalformedCall) else [call.name, dict(call.arguments)])


def _shown(call: Call) -> str:
    text = (
        call.reason if isinstance(call, MalformedCall) else f"{call.name} {json.dumps(dict(call.arguments))}"
    )
    return repr(text if len(text) <= 200 else text[:200] + "…")
