"""A conversation with one engine: the first question, then whatever the user says next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from sandbox_rl.assistant.watch import Record, WatchedClient, WatchedSession, WatchedToolbox, Watcher
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.episode import EpisodeSettings, run_episode
from sandbox_rl.evaluation.chat_episode import MessageTrajectory, run_chat_episode
from sandbox_rl.policies.base import Policy, Sampling
from sandbox_rl.policies.openai_chat import EndpointSettings
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import Answer, Message, StopReason, Trajectory

__all__ = ["EndpointTalk", "Talk", "TokenTalk"]

NAME = "assistant"
"""Of the task and the episode in the trajectory."""


class Talk(Protocol):
    """An async context manager that holds one conversation."""

    record: Record

    async def begin(self, messages: Sequence[Message], sandbox: Sandbox) -> StopReason:
        """Let the policy work on a prompt until it submits, hands over, or a budget ends.

        Raises:
            EngineFault, SandboxFault: our failures.
        """
        ...

    async def go_on(self, text: str, sandbox: Sandbox) -> StopReason:
        """The same after a further message of the user, with budgets of its own."""
        ...

    def trajectory(self, stop: StopReason, answer: Answer, *, fault: str, seconds: float) -> Trajectory:
        """The conversation as it stands."""
        ...

    async def __aenter__(self) -> Talk: ...

    async def __aexit__(self, *exc: object) -> None: ...


class TokenTalk:
    """A policy of token ids: the sequence is only ever extended.

    Args:
        policy: entered and left together with the conversation.
        hand_over: a turn without a call waits for the user instead of being reminded of the tools.
        halt: called before the policy is left; ends a generation that nobody waits for any more.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        chat: ChatFormat,
        toolbox: Toolbox,
        watcher: Watcher,
        episode: EpisodeSettings,
        sampling: Sampling,
        seed: int,
        hand_over: bool,
        halt: Callable[[], None] = lambda: None,
    ) -> None:
        self.record = Record()
        self._halt = halt
        self._policy = policy
        self._chat = chat
        self._toolbox = WatchedToolbox(toolbox, self.record, watcher, hand_over=hand_over)
        self._watcher = watcher
        self._episode = episode
        self._sampling = sampling
        self._seed = seed
        self._exchanges = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> TokenTalk:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._policy)
            session = await stack.enter_async_context(self._policy.session(NAME))
            self._session = WatchedSession(session, self._chat, self.record, self._watcher)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._halt()
        await self._stack.aclose()

    async def begin(self, messages: Sequence[Message], sandbox: Sandbox) -> StopReason:
        """See `Talk.begin`."""
        return await self._run(self._chat.render_prompt(messages), sandbox)

    async def go_on(self, text: str, sandbox: Sandbox) -> StopReason:
        """See `Talk.go_on`."""
        sequence = self.record.sequence
        new = self._chat.render_user(
            text,
            observations=[o.text for o in self.record.unseen],
            ended_by=self._chat.ends.closed_by(sequence),
            calls=self.record.turns[-1].calls if self.record.turns else (),
        )
        return await self._run((*sequence, *new), sandbox)

    async def _run(self, sequence: Sequence[int], sandbox: Sandbox) -> StopReason:
        self._exchanges += 1
        done = await run_episode(
            sequence,
            chat=self._chat,
            toolbox=self._toolbox,
            session=self._session,
            sandbox=sandbox,
            settings=self._episode,
            sampling=self._sampling,
            max_context=self._policy.max_context,
            seed=derive_seed(self._seed, self._exchanges),
            deadline=time.monotonic() + self._episode.timeout_s,
        )
        return done.stop

    def trajectory(self, stop: StopReason, answer: Answer, *, fault: str, seconds: float) -> Trajectory:
        """See `Talk.trajectory`."""
        return Trajectory(
            task_id=NAME,
            prompt_ids=self.record.prompt_ids,
            turns=self.record.turns,
            stop=stop,
            answer=answer,
            episode_id=NAME,
            fault=fault,
            seconds=seconds,
        )


class EndpointTalk:
    """A chat endpoint: the messages of earlier exchanges are sent again in front."""

    def __init__(
        self,
        *,
        endpoint: EndpointSettings,
        toolbox: Toolbox,
        watcher: Watcher,
        episode: EpisodeSettings,
        sampling: Sampling,
        seed: int,
        hand_over: bool,
    ) -> None:
        self.record = Record()
        self._client = WatchedClient(endpoint, self.record, watcher)
        self._toolbox = WatchedToolbox(toolbox, self.record, watcher, hand_over=hand_over)
        self._episode = episode
        self._sampling = sampling
        self._seed = seed
        self._exchanges = 0
        self._hand_over = hand_over

    async def __aenter__(self) -> EndpointTalk:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.__aexit__(*exc)

    async def begin(self, messages: Sequence[Message], sandbox: Sandbox) -> StopReason:
        """See `Talk.begin`."""
        self._exchanges += 1
        done = await run_chat_episode(
            messages,
            client=self._client,
            toolbox=self._toolbox,
            sandbox=sandbox,
            settings=self._episode,
            sampling=self._sampling,
            seed=derive_seed(self._seed, self._exchanges),
            deadline=time.monotonic() + self._episode.timeout_s,
        )
        handed_over = self._hand_over and bool(done.turns) and not done.turns[-1].calls
        # The loop has answered the turn without a call; here the user answers it.
        self._client.settle(done.messages[:-1] if handed_over else done.messages)
        return done.stop

    async def go_on(self, text: str, sandbox: Sandbox) -> StopReason:
        """See `Talk.go_on`."""
        return await self.begin([Message("user", text)], sandbox)

    def trajectory(
        self, stop: StopReason, answer: Answer, *, fault: str, seconds: float
    ) -> MessageTrajectory:
        """See `Talk.trajectory`."""
        return MessageTrajectory(
            task_id=NAME,
            prompt_ids=(),
            turns=self.record.turns,
            stop=stop,
            answer=answer,
            episode_id=NAME,
            fault=fault,
            seconds=seconds,
            messages=self._client.messages,
            usage=self._client.usage,
        )
