"""Engines beside `RolloutEngine`: no sandbox, a chat endpoint, or both.

Each has one `attempt`; retries, concurrency and the attribution of faults are the same for all.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.episode import EpisodeSettings
from sandbox_rl.evaluation.chat_episode import MessageTrajectory, run_chat_episode, to_wire
from sandbox_rl.evaluation.reply import answer_of_reply
from sandbox_rl.policies.base import Policy, Sampling, TurnSampling
from sandbox_rl.policies.openai_chat import ChatClient, ContextFull
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout import END_GRACE_S, EpisodeRequest, RolloutSettings, run_requests
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    Message,
    Rollout,
    StopReason,
    Task,
    Trajectory,
    Turn,
    TurnTiming,
)

__all__ = ["ChatEngine", "PlainChatEngine", "PlainEngine"]

Render = Callable[[Task], Sequence[Message]]


class _Engine(ABC):
    """Scoring around `attempt`. An async context manager."""

    def __init__(
        self,
        *parts: AbstractAsyncContextManager[Any],
        scoring: ScoringPool,
        render: Render,
        episode: EpisodeSettings,
        settings: RolloutSettings,
    ) -> None:
        self._parts = (*parts, scoring)
        self._scoring = scoring
        self._render = render
        self._episode = episode
        self._settings = settings
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> _Engine:
        async with AsyncExitStack() as stack:
            for part in self._parts:
                await stack.enter_async_context(part)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    @abstractmethod
    async def attempt(self, request: EpisodeRequest, sampling: Sampling) -> Trajectory:
        """Run one episode to its answer."""

    async def run(
        self,
        requests: Sequence[EpisodeRequest],
        *,
        sampling: Sampling | None = None,
        overlong: Any = None,
        on_rollout: Callable[[EpisodeRequest, Rollout], None] | None = None,
    ) -> list[Rollout]:
        """As `RolloutEngine.run`; what a budget ended is always scored: this is for evaluation.

        Raises:
            InfraFault: every single episode failed on our side.
            UserError: the machine, the endpoint or the model cannot do it at all.
        """
        chosen = sampling or Sampling()

        async def attempt(request: EpisodeRequest) -> Rollout:
            trajectory = await self.attempt(request, chosen)
            return Rollout(
                trajectory, await self._scoring.score(request.task, trajectory.answer), request.task
            )

        return await run_requests(
            requests,
            attempt,
            settings=self._settings,
            budget_s=self._episode.timeout_s + self._episode.boot_timeout_s + END_GRACE_S,
            on_rollout=on_rollout,
        )


class ChatEngine(_Engine):
    """A chat endpoint in sandboxes.

    Args:
        client, backend, scoring: entered and left together with the engine.
        render: the messages of a task's prompt.
    """

    def __init__(
        self, *, client: ChatClient, backend: SandboxBackend, toolbox: Toolbox, **common: Any
    ) -> None:
        super().__init__(backend, client, **common)
        self._client = client
        self._backend = backend
        self._toolbox = toolbox

    async def attempt(self, request: EpisodeRequest, sampling: Sampling) -> MessageTrajectory:
        """One episode in a sandbox of its own."""
        started = time.monotonic()
        task, boot = request.task, self._episode.boot_timeout_s
        async with self._backend.sandbox(task.files or None, timeout=boot) as sandbox:
            done = await run_chat_episode(
                self._render(task),
                client=self._client,
                toolbox=self._toolbox,
                sandbox=sandbox,
                settings=self._episode,
                sampling=sampling,
                seed=request.seed,
                deadline=started + self._episode.timeout_s,
            )
            answer = await sandbox.read_answer()
        return MessageTrajectory(
            task_id=task.id,
            prompt_ids=(),
            turns=done.turns,
            stop=done.stop,
            answer=answer,
            episode_id=request.id,
            seconds=time.monotonic() - started,
            messages=done.messages,
            usage=done.usage,
        )


class PlainChatEngine(_Engine):
    """A chat endpoint without a sandbox: one reply, whose answer `reply.answer_of_reply` finds."""

    def __init__(self, *, client: ChatClient, **common: Any) -> None:
        super().__init__(client, **common)
        self._client = client

    async def attempt(self, request: EpisodeRequest, sampling: Sampling) -> MessageTrajectory:
        """One question, one reply."""
        started = time.monotonic()
        wire = to_wire(self._render(request.task))
        turns: tuple[Turn, ...] = ()
        usage = {"prompt": 0, "sampled": 0, "observed": 0}
        answer, stop = Answer(AnswerStatus.MISSING), StopReason.MAX_TOKENS
        try:
            reply = await self._client.reply(
                wire, (), _one_turn(self._episode, sampling, request.seed), timeout=self._episode.timeout_s
            )
        except TimeoutError:
            stop = StopReason.TIMEOUT
        except ContextFull:
            pass
        else:
            wire.append(dict(reply.message))
            answer = answer_of_reply(reply.text, request.task.scorer)
            if reply.finish_reason != "length":
                stop = StopReason.SUBMITTED
            timing = TurnTiming(generation=time.monotonic() - started)
            turns = (Turn(Action((), None, reply.finish_reason), timing=timing),)
            usage |= {"prompt": reply.prompt_tokens or 0, "sampled": reply.completion_tokens or 0}
        return MessageTrajectory(
            task_id=request.task.id,
            prompt_ids=(),
            turns=turns,
            stop=stop,
            answer=answer,
            episode_id=request.id,
            seconds=time.monotonic() - started,
            messages=tuple(wire),
            usage=usage,
        )


class PlainEngine(_Engine):
    """A token policy without a sandbox.

    Args:
        policy, scoring: entered and left together with the engine.
        chat: the model's chat format made *without* tools.
    """

    def __init__(self, *, policy: Policy, chat: ChatFormat, **common: Any) -> None:
        super().__init__(policy, **common)
        self._policy = policy
        self._chat = chat

    async def attempt(self, request: EpisodeRequest, sampling: Sampling) -> Trajectory:
        """One question, one reply."""
        started = time.monotonic()
        prompt = self._chat.render_prompt(self._render(request.task))
        room = min(self._episode.max_tokens, self._policy.max_context - len(prompt))
        turns: tuple[Turn, ...] = ()
        answer, stop = Answer(AnswerStatus.MISSING), StopReason.MAX_TOKENS
        if room > 0:
            one = _one_turn(self._episode, sampling, request.seed, room)
            try:
                async with self._policy.session(request.id) as session:
                    action = await session.act(prompt, one, timeout=self._episode.timeout_s)
            except TimeoutError:
                stop = StopReason.TIMEOUT
            else:
                said = self._chat.decode(self._chat.ends.before(action.token_ids))
                answer = answer_of_reply(said, request.task.scorer)
                if action.finish_reason != "length":
                    stop = StopReason.SUBMITTED
                turns = (Turn(action, timing=TurnTiming(generation=time.monotonic() - started)),)
        return Trajectory(
            task_id=request.task.id,
            prompt_ids=prompt,
            turns=turns,
            stop=stop,
            answer=answer,
            episode_id=request.id,
            seconds=time.monotonic() - started,
        )


def _one_turn(
    episode: EpisodeSettings, sampling: Sampling, seed: int, room: int | None = None
) -> TurnSampling:
    """A single reply has the whole episode's tokens: the comparison gives both modes one budget."""
    return sampling.turn(max_tokens=episode.max_tokens if room is None else room, seed=derive_seed(seed, 0))
