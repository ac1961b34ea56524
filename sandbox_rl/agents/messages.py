"""A policy behind a chat endpoint in an episode: messages instead of token ids.

Its trajectories can be scored, shown and counted, not trained on. Token counts are those that the endpoint
reports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sandbox_rl.agents.base import AgentSession, AgentTurn, Around, BudgetSpent, SessionRecord, SessionSetup
from sandbox_rl.policies.openai_chat import ChatCall, ChatClient, ChatReply, ContextFull
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Action, ChatRecord, Message, Observation

CHARS_PER_TOKEN = 4
"""For endpoints that do not count; only budgets rely on it."""


class MessageAgent(Around[ChatClient]):
    """An `Agent` around a chat client."""

    @asynccontextmanager
    async def session(self, setup: SessionSetup) -> AsyncIterator[AgentSession]:
        """See `Agent.session`.

        Raises:
            ConfigError: as turns are asked for: the endpoint refuses key, model or address.
        """
        yield _MessageSession(self.inner, setup)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """(): the endpoint keeps them to itself."""
        return ()

    def reasoning_and_words(self, turn: AgentTurn) -> tuple[str, str]:
        return turn.reasoning, turn.text


class _MessageSession:
    call_example = ""

    def __init__(self, client: ChatClient, setup: SessionSetup) -> None:
        self._client = client
        self._setup = setup
        self._history: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in setup.messages]
        self._count = _Counter(self._history)
        self._turn = 0
        self._calls: tuple[ChatCall, ...] = ()

    async def act(self, *, timeout: float) -> AgentTurn:
        setup = self._setup
        left = min(setup.limits.turn_tokens, setup.limits.max_tokens - self._count.spent)
        if left <= 0:
            raise BudgetSpent
        asked = setup.sampling.turn(max_tokens=left, seed=derive_seed(setup.request.seed, self._turn))
        try:
            reply = await self._client.reply(self._history, setup.tools, asked, timeout=timeout)
        except ContextFull as error:
            raise BudgetSpent from error
        self._turn += 1
        self._count.add(reply)
        self._history.append(dict(reply.message))
        self._calls = reply.calls
        calls = tuple(call.call for call in reply.calls)
        return AgentTurn(Action((), None, reply.finish_reason), calls, reply.text, reply.reasoning)

    async def observe(
        self, observations: Sequence[Observation], steps_left: int, *, last: bool
    ) -> tuple[int, ...] | None:
        """One tool message per call, as the API demands, also for calls that were not run."""
        steps = f"\nSteps Remaining: {steps_left}"
        if self._calls:
            texts = [o.text for o in observations] + ["Not run."] * (len(self._calls) - len(observations))
            texts[-1] += steps
            self._history.extend(
                {"role": "tool", "tool_call_id": call.id, "content": text}
                for call, text in zip(self._calls, texts, strict=True)
            )
        elif not observations[0].submitted:  # else the user answers it
            self._history.append({"role": "user", "content": observations[0].text + steps})
        return ()

    def add_user(self, text: str) -> tuple[int, ...]:
        self._history.append({"role": "user", "content": text})
        self._count.begin_anew()
        return ()

    def record(self) -> SessionRecord:
        return SessionRecord((), ChatRecord(tuple(self._history), self._count.usage))


class _Counter:
    """Tokens so far. What the environment added is what the next prompt holds beyond reply and prompt."""

    def __init__(self, history: Sequence[Mapping[str, Any]]) -> None:
        self._first = sum(len(str(m.get("content", ""))) for m in history) // CHARS_PER_TOKEN
        self._counted = False
        self._sampled = 0
        self._observed = 0
        self._end = 0  # prompt and completion of the last turn
        self._before = 0  # of earlier budgets
        self._anew = False

    def add(self, reply: ChatReply) -> None:
        sampled = reply.completion_tokens
        if sampled is None:
            written = len(reply.text) + len(reply.reasoning) + sum(len(str(c.call)) for c in reply.calls)
            sampled = written // CHARS_PER_TOKEN + 1
        if reply.prompt_tokens is not None:
            if not self._counted:
                self._counted, self._first = True, reply.prompt_tokens
            else:
                # Templates that drop earlier reasoning make prompts shorter; that is no negative observation.
                self._observed += max(0, reply.prompt_tokens - self._end)
            self._end = reply.prompt_tokens + sampled
        if self._anew:
            self._anew, self._before = False, self._sampled + self._observed
        self._sampled += sampled

    def begin_anew(self) -> None:
        """A new budget begins; what the user says is not charged to it."""
        self._anew, self._before = True, self._sampled + self._observed

    @property
    def spent(self) -> int:
        """Sampled and observed tokens of the present budget."""
        return self._sampled + self._observed - self._before

    @property
    def usage(self) -> dict[str, int]:
        """For the journal."""
        return {"prompt": self._first, "sampled": self._sampled, "observed": self._observed}
