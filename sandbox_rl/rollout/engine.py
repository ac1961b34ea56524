"""Many episodes at once: each at its own pace, in one event loop, from sandbox to reward."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.episode import EpisodeSettings, run_episode
from sandbox_rl.policies.base import Policy, Sampling
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout.groups import FirstGroups, first_groups
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.rollout.settings import EpisodeRequest, OverlongPolicy, RolloutSettings
from sandbox_rl.rollout.slots import episode_runner, run_requests
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import Message, Reward, Rollout, StopReason, Task, Trajectory

__all__ = ["END_GRACE_S", "RolloutEngine"]

END_GRACE_S = 60.0
"""Seconds that reading the answer, freeing the sandbox and scoring may take after the deadline."""


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
        sampling: Sampling,
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
        self.occupancy = Occupancy()
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
        sampling: Sampling | None = None,
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
            budget_s=self._budget_s,
            prompt_ids=self.prompt_ids,
            on_rollout=on_rollout,
        )

    async def run_groups(
        self,
        groups: Sequence[Sequence[EpisodeRequest]],
        *,
        keep: int,
        on_rollout: Callable[[EpisodeRequest, Rollout], None] | None = None,
    ) -> FirstGroups:
        """Run all groups until `keep` of them have ended; the others are cancelled and their sandboxes freed.

        Raises:
            InfraFault, UserError: as `run`.
        """
        run_one = episode_runner(
            lambda request: self._attempt(request, self._sampling, None),
            settings=self._settings,
            budget_s=self._budget_s,
            prompt_ids=self.prompt_ids,
        )
        return await first_groups(groups, run_one, keep=keep, on_rollout=on_rollout)

    @property
    def _budget_s(self) -> float:
        return self._episode.timeout_s + self._episode.boot_timeout_s + END_GRACE_S

    async def _attempt(
        self, request: EpisodeRequest, sampling: Sampling, overlong: OverlongPolicy | None
    ) -> Rollout:
        started = time.monotonic()
        deadline = started + self._episode.timeout_s
        task = request.task
        prompt_ids = await asyncio.to_thread(self.prompt_ids, task)  # long prompts take long to encode
        boot = self._episode.boot_timeout_s
        async with self.backend.sandbox(task.files or None, timeout=boot) as sandbox:
            async with self.policy.session(request.id) as opened:
                with self.occupancy.episode(opened) as session:
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
