"""What passes between policy and sandbox, shown and recorded as it happens.

The episode loops know nothing of it: the parts that they are given are wrapped. So an interrupted
conversation is on record up to its last instant, and a watched one runs as any other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.policies.base import PolicySession, TurnSampling
from sandbox_rl.policies.openai_chat import ChatClient, ChatReply, EndpointSettings
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import Action, MalformedCall, Observation, ToolCall, ToolFailure, Turn, TurnTiming

__all__ = ["Record", "WatchedClient", "WatchedSession", "WatchedToolbox", "Watcher"]


class Watcher(Protocol):
    """Sees a conversation as it happens. Texts are the policy's: clean them before showing them."""

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


class Record:
    """The turns so far, and the very ids that the policy has seen and sampled.

    Attributes:
        prompt_ids: the sequence that the first turn was sampled after.
        sequence: all ids in order, the user's further messages included.
    """

    def __init__(self) -> None:
        self.prompt_ids: tuple[int, ...] = ()
        self.sequence: tuple[int, ...] = ()
        self._turns: list[Turn] = []

    @property
    def turns(self) -> tuple[Turn, ...]:
        """As a trajectory has them: nothing follows the last action."""
        if not self._turns:
            return ()
        return (*self._turns[:-1], replace(self._turns[-1], observation_ids=()))

    @property
    def unseen(self) -> tuple[Observation, ...]:
        """What answered the calls of the last turn, unless the policy has been shown it."""
        last = self._turns[-1] if self._turns else None
        return last.observations if last is not None and last.calls and not last.observation_ids else ()

    def asked(self, sequence: Sequence[int]) -> None:
        """The policy is asked to go on from `sequence`, which extends what is known."""
        new = tuple(sequence[len(self.sequence) :])
        self.sequence += new
        if not self._turns:
            self.prompt_ids = self.sequence
        else:
            last = self._turns[-1]
            self._turns[-1] = replace(last, observation_ids=last.observation_ids + new)

    def acted(self, action: Action, calls: Sequence[ToolCall | MalformedCall], seconds: float) -> None:
        """The policy's turn."""
        self.sequence += action.token_ids
        self._turns.append(Turn(action, tuple(calls), timing=TurnTiming(generation=seconds)))

    def observed(self, observation: Observation, seconds: float) -> None:
        """One observation of the last turn."""
        last = self._turns[-1]
        self._turns[-1] = replace(
            last,
            observations=(*last.observations, observation),
            timing=replace(last.timing, execution=last.timing.execution + seconds),
        )


class WatchedSession:
    """A policy session (`policies.base.PolicySession`) that is shown and recorded."""

    def __init__(self, inner: PolicySession, chat: ChatFormat, record: Record, watcher: Watcher) -> None:
        self._inner = inner
        self._chat = chat
        self._record = record
        self._watcher = watcher

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        """As the session within."""
        self._record.asked(prompt_ids)
        self._watcher.thinking()
        started = time.monotonic()
        action = await self._inner.act(prompt_ids, sampling, timeout=timeout)
        calls = self._chat.parse(action.token_ids)
        self._record.acted(action, calls, time.monotonic() - started)
        self._watcher.said(*self._chat.spoken(action.token_ids))
        return action


class WatchedClient(ChatClient):
    """A chat client that is shown and recorded, and that remembers the conversation so far.

    Attributes:
        earlier: messages of earlier exchanges; put before those of the present one.
    """

    def __init__(self, settings: EndpointSettings, record: Record, watcher: Watcher) -> None:
        super().__init__(settings)
        self.earlier: list[Mapping[str, Any]] = []
        self._now: Sequence[Mapping[str, Any]] = ()
        self._record = record
        self._watcher = watcher
        self._first_prompt = 0
        self._last_end = 0
        self._sampled = 0

    @property
    def messages(self) -> tuple[Mapping[str, Any], ...]:
        """The whole conversation as it stands."""
        return (*self.earlier, *self._now)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens by the endpoint's own count, zeros where it does not count."""
        observed = max(0, self._last_end - self._first_prompt - self._sampled)
        return {"prompt": self._first_prompt, "sampled": self._sampled, "observed": observed}

    def settle(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """An exchange is over and left these messages of its own."""
        self.earlier += messages
        self._now = ()

    async def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        sampling: TurnSampling,
        *,
        timeout: float,
    ) -> ChatReply:
        """As `ChatClient.reply`, after the messages of earlier exchanges."""
        self._now = messages  # the caller's own list: it grows as the exchange goes on
        self._watcher.thinking()
        started = time.monotonic()
        reply = await super().reply([*self.earlier, *messages], tools, sampling, timeout=timeout)
        calls = [call.call for call in reply.calls]
        self._record.acted(Action((), None, reply.finish_reason), calls, time.monotonic() - started)
        prompt, sampled = reply.prompt_tokens or 0, reply.completion_tokens or 0
        self._first_prompt = self._first_prompt or prompt
        self._sampled += sampled
        self._last_end = prompt + sampled
        self._watcher.said(reply.reasoning, reply.text)
        return reply


class WatchedToolbox(Toolbox):
    """A toolbox that is shown and recorded.

    Args:
        hand_over: a turn without a call ends the exchange, because somebody is there to answer it.
    """

    def __init__(self, inner: Toolbox, record: Record, watcher: Watcher, *, hand_over: bool) -> None:
        super().__init__(())
        self.schemas = inner.schemas
        self._inner = inner
        self._record = record
        self._watcher = watcher
        self._hand_over = hand_over

    async def run(self, sandbox: Sandbox, call: ToolCall | MalformedCall, *, timeout: float) -> Observation:
        """As the toolbox within."""
        self._watcher.calling(call)
        started = time.monotonic()
        observation = await self._inner.run(sandbox, call, timeout=timeout)
        self._record.observed(observation, time.monotonic() - started)
        self._watcher.observed(observation)
        return observation

    def no_call(self, example: str = "") -> Observation:
        """As the toolbox within; with `hand_over` it counts as submitted."""
        if self._hand_over:
            observation = Observation("", failure=ToolFailure.NO_CALL, submitted=True)
        else:
            observation = self._inner.no_call(example)
            self._watcher.observed(observation)
        self._record.observed(observation, 0.0)
        return observation
