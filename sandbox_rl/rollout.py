"""Many episodes at once: each at its own pace, in one event loop, with faults attributed in one place.

The only module that decides what a failure was. Whatever the policy did is in the trajectory; an
`InfraFault` is retried with a fresh sandbox and, when it persists, becomes a rollout without reward.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.episode import EpisodeSettings, SamplingSettings, run_episode
from sandbox_rl.errors import InfraFault, UserError
from sandbox_rl.policies.base import Policy
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.settings import Settings
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import Answer, AnswerStatus, Message, Reward, Rollout, StopReason, Task, Trajectory

__all__ = ["EpisodeRequest", "RolloutEngine", "RolloutSettings", "run_requests"]

logger = logging.getLogger(__name__)

END_GRACE_S = 60.0
"""Seconds that reading the answer, freeing the sandbox and scoring may take after the deadline."""


OverlongPolicy = Literal["zero", "score", "mask"]


class RolloutSettings(Settings):
    """How many episodes run at once and what happens to those that fail."""

    concurrency: int = Field(64, ge=1)
    """Episodes in flight."""
    retries: int = Field(2, ge=0)
    """Further tries, each in a fresh sandbox, after an infrastructure fault."""
    backoff_s: float = Field(1.0, ge=0)
    """First wait before a retry; doubles each time, with jitter."""
    overlong: OverlongPolicy = "zero"
    """Reward of an episode that ran out of turns or tokens: 0 (the paper's choice for training), scored, or
    masked: out of its group's baseline and without gradient (overlong filtering, arXiv 2503.14476)."""
    timed_out: OverlongPolicy = "zero"
    """The same for an episode that ran out of time."""


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One episode to run. `seed` alone decides its sampling; `id` names it in the journal."""

    id: str
    task: Task
    seed: int


class RolloutEngine:
    """Turns requests into rollouts. An async context manager: it starts and frees its parts.

    Args:
        render: the messages of a task's prompt.
        policy, backend, scoring: entered and left together with the engine.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        backend: SandboxBackend,
        scoring: ScoringPool,
        chat: ChatFormat,
        toolbox: Toolbox,
        render: Callable[[Task], Sequence[Message]],
        episode: EpisodeSettings,
        sampling: SamplingSettings,
        settings: RolloutSettings,
    ) -> None:
        self.policy = policy
        self.backend = backend
        self.chat = chat
        self.scoring = scoring
        self._toolbox = toolbox
        self._render = render
        self._episode = episode
        self._sampling = sampling
        self._settings = settings
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> RolloutEngine:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.backend)
            await stack.enter_async_context(self.policy)
            await stack.enter_async_context(self.scoring)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """The rendered prompt of a task, shape (P,)."""
        return self.chat.render_prompt(self._render(task))

    async def run(
        self,
        requests: Sequence[EpisodeRequest],
        *,
        sampling: SamplingSettings | None = None,
        overlong: OverlongPolicy | None = None,
        on_rollout: Callable[[EpisodeRequest, Rollout], None] | None = None,
    ) -> list[Rollout]:
        """Run all requests, at most `concurrency` at a time.

        Args:
            sampling, overlong: replace the engine's own, for evaluation; `overlong` the time-outs' too.
            on_rollout: called in the event loop as each episode ends; must not block.

        Returns:
            One rollout per request, in the order of the requests.

        Raises:
            InfraFault: every single episode failed on our side; going on would train on nothing.
            UserError: the machine cannot do it at all.
        """
        chosen = sampling or self._sampling
        return await run_requests(
            requests,
            lambda request: self._attempt(request, chosen, overlong),
            settings=self._settings,
            budget_s=self._episode.timeout_s + self._episode.boot_timeout_s + END_GRACE_S,
            prompt_ids=self.prompt_ids,
            on_rollout=on_rollout,
        )

    async def _attempt(
        self, request: EpisodeRequest, sampling: SamplingSettings, overlong: OverlongPolicy | None
    ) -> Rollout:
        started = time.monotonic()
        deadline = started + self._episode.timeout_s
        task = request.task
        prompt_ids = self.prompt_ids(task)
        boot = self._episode.boot_timeout_s
        async with self.backend.sandbox(task.files or None, timeout=boot) as sandbox:
            async with self.policy.session(request.id) as session:
                transcript = await run_episode(
                    prompt_ids,
                    chat=self.chat,
                    toolbox=self._toolbox,
                    session=session,
                    sandbox=sandbox,
                    settings=self._episode,
                    sampling=sampling,
                    max_context=self.policy.max_context,
                    seed=request.seed,
                    deadline=deadline,
                )
            answer = await sandbox.read_answer()
        trajectory = Trajectory(
            task_id=task.id,
            prompt_ids=prompt_ids,
            turns=transcript.turns,
            stop=transcript.stop,
            answer=answer,
            episode_id=request.id,
            seconds=time.monotonic() - started,
        )
        if transcript.stop.is_overlong:
            timed_out = transcript.stop is StopReason.TIMEOUT
            choice = overlong or (self._settings.timed_out if timed_out else self._settings.overlong)
            detail = f"ended by {transcript.stop.value}"
            if choice == "zero":
                return Rollout(trajectory, Reward(0.0, detail=detail), task)
            if choice == "mask":
                return Rollout(trajectory, Reward(None, detail=detail, masked=True), task)
        return Rollout(trajectory, await self.scoring.score(task, answer), task)


async def run_requests(
    requests: Sequence[EpisodeRequest],
    attempt: Callable[[EpisodeRequest], Awaitable[Rollout]],
    *,
    settings: RolloutSettings,
    budget_s: float,
    prompt_ids: Callable[[Task], tuple[int, ...]] = lambda _: (),
    on_rollout: Callable[[EpisodeRequest, Rollout], None] | None = None,
) -> list[Rollout]:
    """Run all requests side by side, each with its retries: what every engine has in common.

    Args:
        attempt: one whole try: episode, answer, reward.
        budget_s: seconds that a try may take.
        prompt_ids: those of an episode that is lost to a fault.

    Returns, Raises:
        As `RolloutEngine.run`.
    """
    slots = asyncio.Semaphore(settings.concurrency)

    async def one(request: EpisodeRequest) -> Rollout:
        async with slots:
            rollout = await _with_retries(request, attempt, settings, budget_s, prompt_ids)
        if on_rollout is not None:
            on_rollout(request, rollout)
        return rollout

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None  # one cause says it all; the rest was cancelled
    rollouts = [task.result() for task in tasks]
    if rollouts and all(r.trajectory.stop is StopReason.INFRA_FAULT for r in rollouts):
        raise InfraFault(
            f"all {len(rollouts)} episodes failed on our side; the first: {rollouts[0].trajectory.fault}"
        )
    return rollouts


async def _with_retries(
    request: EpisodeRequest,
    attempt: Callable[[EpisodeRequest], Awaitable[Rollout]],
    settings: RolloutSettings,
    budget_s: float,
    prompt_ids: Callable[[Task], tuple[int, ...]],
) -> Rollout:
    started = time.monotonic()
    fault = ""
    for number in range(settings.retries + 1):
        if number:
            # Jitter keeps episodes that failed together from coming back together.
            await asyncio.sleep(settings.backoff_s * 2 ** (number - 1) * random.uniform(0.5, 1.5))
        try:
            async with asyncio.timeout(budget_s):
                return await attempt(request)
        except UserError:
            raise
        except TimeoutError:
            fault = f"the episode outlasted its whole budget of {budget_s:.0f} s"
        except InfraFault as error:
            fault = f"{type(error).__name__}: {error}"
        except Exception as error:
            # Not one of ours by type, so a defect: it must not end a run of days, nor go unseen.
            fault = f"{type(error).__name__}: {error}"
            logger.exception("episode %s: unexpected failure", request.id)
        logger.warning("episode %s, try %d: %s", request.id, number + 1, fault)
    lost = Trajectory(
        task_id=request.task.id,
        prompt_ids=prompt_ids(request.task),
        turns=(),
        stop=StopReason.INFRA_FAULT,
        answer=Answer(AnswerStatus.MISSING),
        episode_id=request.id,
        fault=fault,
        seconds=time.monotonic() - started,
    )
    return Rollout(lost, Reward(None, detail=fault), request.task)
