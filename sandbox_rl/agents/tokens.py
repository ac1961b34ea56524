"""A policy of token ids in an episode: nothing is decoded and encoded again.

The sequence grows by the ids that were sampled and by the ids of each observation in the chat template's
own frame.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sandbox_rl.agents.base import AgentSession, AgentTurn, Around, BudgetSpent, SessionRecord, SessionSetup
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.cooperate import give_way, off_loop
from sandbox_rl.policies.base import Policy, PolicySession
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import MalformedCall, Message, Observation, ToolCall

INLINE_CHARS = 2_000
"""Observations of a turn that are encoded in the event loop; a thread costs more than so little text."""


class TokenAgent(Around[Policy]):
    """An `Agent` around a policy.

    Args:
        chat: its chat format, made with the tools of the episodes.
    """

    def __init__(self, policy: Policy, chat: ChatFormat) -> None:
        super().__init__(policy)
        self.chat = chat

    @asynccontextmanager
    async def session(self, setup: SessionSetup) -> AsyncIterator[AgentSession]:
        prompt_ids = await off_loop(self.prompt_ids, setup.messages)  # long prompts take long to encode
        async with self.inner.session(setup.request.id) as opened:
            yield _TokenSession(opened, self.chat, prompt_ids, setup, self.inner.max_context)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.chat.render_prompt(messages)

    def reasoning_and_words(self, turn: AgentTurn) -> tuple[str, str]:
        return self.chat.reasoning_and_words(turn.action.token_ids)


class _TokenSession:
    def __init__(
        self,
        policy: PolicySession,
        chat: ChatFormat,
        prompt_ids: tuple[int, ...],
        setup: SessionSetup,
        max_context: int,
    ) -> None:
        self._policy = policy
        self._chat = chat
        self._prompt_ids = prompt_ids
        self._setup = setup
        self._max_context = max_context
        self._sequence = list(prompt_ids)
        self._end = self._budget_end()
        self._turn = 0
        self._action: tuple[int, ...] = ()
        self._calls: tuple[ToolCall | MalformedCall, ...] = ()
        self._unseen: tuple[str, ...] = ()  # observations of the last turn that are not in the sequence

    @property
    def call_example(self) -> str:
        return self._chat.call_example

    async def act(self, *, timeout: float) -> AgentTurn:
        setup = self._setup
        left = min(setup.limits.turn_tokens, self._end - len(self._sequence))
        if left <= 0:
            raise BudgetSpent
        asked = setup.sampling.turn(max_tokens=left, seed=derive_seed(setup.request.seed, self._turn))
        action = await self._policy.act(self._sequence, asked, timeout=timeout)
        self._turn += 1
        self._sequence.extend(action.token_ids)
        await give_way()
        text = self._chat.turn_text(action.token_ids)
        self._action, self._calls = action.token_ids, self._chat.calls_of(text)
        return AgentTurn(action, self._calls, text)

    async def observe(
        self, observations: Sequence[Observation], steps_left: int, *, last: bool
    ) -> tuple[int, ...] | None:
        self._unseen = tuple(o.text for o in observations) if self._calls else ()
        if last:
            return ()
        ids = await self._rendered(observations, steps_left)
        if len(self._sequence) + len(ids) >= self._end:
            return None
        self._sequence.extend(ids)
        self._unseen = ()
        return ids

    def add_user(self, text: str) -> tuple[int, ...]:
        ids = self._chat.render_user(
            text,
            observations=self._unseen,
            ended_by=self._chat.ends.closed_by(self._sequence),
            calls=self._calls,
        )
        self._sequence.extend(ids)
        self._unseen = ()
        if not self._turn:
            self._prompt_ids = tuple(self._sequence)
        self._end = self._budget_end()
        return ids

    def record(self) -> SessionRecord:
        return SessionRecord(self._prompt_ids)

    def _budget_end(self) -> int:
        """The longest that the sequence may become from here."""
        return min(len(self._sequence) + self._setup.limits.max_tokens, self._max_context)

    async def _rendered(self, observations: Sequence[Observation], steps_left: int) -> tuple[int, ...]:
        texts = [o.text for o in observations]
        texts[-1] += f"\nSteps Remaining: {steps_left}"
        ended_by = self._chat.ends.closed_by(self._action)
        if sum(map(len, texts)) <= INLINE_CHARS:
            return self._chat.render_observations(texts, ended_by=ended_by, calls=self._calls)
        # The tokenizer lets go of the interpreter's lock, so the loop goes on meanwhile.
        return await off_loop(self._chat.render_observations, texts, ended_by=ended_by, calls=self._calls)
