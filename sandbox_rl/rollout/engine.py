"""Many episodes at once: each at its own pace, in one event loop, from sandbox to reward."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

from sandbox_rl.agents.base import Agent, EpisodeRequest, EpisodeSettings, SessionSetup
from sandbox_rl.cooperate import give_way, off_loop
from sandbox_rl.episode import run_episode
from sandbox_rl.observer import Observer, Observers
from sandbox_rl.policies.base import Sampling
from sandbox_rl.rewards.base import Scores
from sandbox_rl.rewards.reply import answer_of_reply
from sandbox_rl.rollout.disk import DiskSpace
from sandbox_rl.rollout.judging import judge
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.rollout.settings import OverlongPolicy, RolloutSettings
from sandbox_rl.rollout.slots import FirstGroups, RunOne, first_groups, with_retries
from sandbox_rl.sandboxes.base import PlaysEpisodes, SandboxBackend
from sandbox_rl.sandboxes.forwarding import watched
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.types import Message, Rollout, Task, Trajectory

Finished = Callable[[EpisodeRequest], Rollout | None]
"""What became of an episode already, if it need not be run."""

END_GRACE_S = 60.0
"""Seconds that reading the answer, freeing the sandbox and scoring may take after the deadline."""


class RolloutEngine:
    """Turns requests into rollouts. An async context manager: it starts and frees its parts.

    Args:
        agent, backend, scoring: entered and left together with the engine.
        backend: None for episodes without a sandbox: one turn of all the episode's tokens, no tools, and
            the answer is in the reply.
        render: the messages of a task's prompt.
        disk: waited for before an episode starts.
    """

    def __init__(
        self,
        *,
        agent: Agent,
        backend: SandboxBackend | None,
        scoring: Scores,
        toolbox: Toolbox,
        render: Callable[[Task], Sequence[Message]],
        episode: EpisodeSettings,
        sampling: Sampling,
        settings: RolloutSettings,
        disk: DiskSpace | None = None,
    ) -> None:
        self.agent = agent
        self.backend = backend
        self.scoring = scoring
        self.occupancy = Occupancy()
        self._toolbox = toolbox if backend is not None else Toolbox(())
        self._render = render
        self._episode = (
            episode
            if backend is not None
            else episode.model_copy(update={"max_turns": 1, "turn_tokens": episode.max_tokens})
        )
        self._sampling = sampling
        self._settings = settings
        self._disk = disk
        self._stack: AsyncExitStack | None = None
        self._froze = False

    async def __aenter__(self) -> RolloutEngine:
        async with AsyncExitStack() as stack:
            if self.backend is not None:
                await stack.enter_async_context(self.backend)
            await stack.enter_async_context(self.agent)
            await stack.enter_async_context(self.scoring)
            self._stack = stack.pop_all()
        # A full collection looks at everything that torch and the libraries have made: 0.2 s in which no
        # episode goes on. What is there by now is not garbage, so collections leave it out until the end.
        # Where they do so already, whoever began it ends it.
        self._froze = gc.get_freeze_count() == 0
        if self._froze:
            gc.collect()
            gc.freeze()
        return self

    async def __aexit__(self, *exc: object) -> None:
        stack, self._stack = self._stack, None
        if self._froze:
            gc.unfreeze()
        if stack is not None:
            await stack.aclose()

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """The rendered prompt of a task, shape (P,); () of an endpoint."""
        return self.agent.prompt_ids(self._render(task))

    async def run(
        self,
        requests: Sequence[EpisodeRequest],
        *,
        sampling: Sampling | None = None,
        overlong: OverlongPolicy | None = None,
        observer: Observer | None = None,
        finished: Finished | None = None,
    ) -> list[Rollout]:
        """Run all requests, at most `concurrency` at a time.

        Args:
            sampling, overlong: replace the engine's own, for evaluation; `overlong` the time-outs' too.
            observer: sees these episodes; what it raises ends the run.
            finished: what became of an episode that need not be run, since an earlier start of the run did;
                nobody observes it.

        Returns:
            One rollout per request, in the order of the requests.

        Raises:
            InfraFault: every single episode failed on our side; going on would train on nothing.
            UserError: the machine, the endpoint or the model cannot do it at all.
        """
        run_one = self._runner(sampling or self._sampling, overlong, observer, finished)
        found = await first_groups([[request] for request in requests], run_one, keep=len(requests))
        return [rollout for (rollout,) in found.ended.values()]

    async def run_groups(
        self,
        groups: Sequence[Sequence[EpisodeRequest]],
        *,
        keep: int,
        observer: Observer | None = None,
        finished: Finished | None = None,
    ) -> FirstGroups:
        """Run all groups until `keep` of them have ended; the others are cancelled and their sandboxes freed.

        Raises:
            InfraFault, UserError: as `run`.
        """
        return await first_groups(groups, self._runner(self._sampling, None, observer, finished), keep=keep)

    def _runner(
        self,
        sampling: Sampling,
        overlong: OverlongPolicy | None,
        observer: Observer | None,
        finished: Finished | None,
    ) -> RunOne:
        seen = Observers(self.occupancy, observer)
        slots = asyncio.Semaphore(self._settings.concurrency)
        budget_s = self._episode.timeout_s + self._episode.boot_timeout_s + END_GRACE_S
        attempt = partial(self._attempt, sampling=sampling, overlong=overlong, observer=seen)

        async def one(request: EpisodeRequest) -> Rollout:
            if finished is not None and (done := finished(request)) is not None:
                return done
            self.occupancy.asked += 1
            try:
                async with slots:
                    if self._disk is not None:
                        await self._disk.wait()
                    rollout = await with_retries(
                        request, attempt, self._settings, budget_s=budget_s, prompt_ids=self.prompt_ids
                    )
                await give_way()  # an observer may write a journal line of megabytes
                seen.rolled_out(request, rollout)
                return rollout
            finally:
                self.occupancy.asked -= 1

        return one

    async def _attempt(
        self,
        request: EpisodeRequest,
        sampling: Sampling,
        overlong: OverlongPolicy | None,
        observer: Observer,
    ) -> Rollout:
        """One episode to its answer, and what it is worth."""
        started = time.monotonic()
        task, settings = request.task, self._episode
        messages = await off_loop(self._render, task)  # it may hold whole documents
        async with AsyncExitStack() as stack:
            sandbox = None
            if self.backend is not None:
                if isinstance(self.backend, PlaysEpisodes):
                    opened = self.backend.sandbox_of(request.id)
                else:
                    opened = self.backend.sandbox(task.files or None, timeout=settings.boot_timeout_s)
                sandbox = watched(await stack.enter_async_context(opened))
            setup = SessionSetup(request, messages, self._toolbox.schemas, sampling, settings)
            async with self.agent.session(setup) as session:
                transcript = await run_episode(
                    request,
                    session,
                    toolbox=self._toolbox,
                    sandbox=sandbox,
                    settings=settings,
                    deadline=started + settings.timeout_s,
                    observer=observer,
                )
            if sandbox is not None:
                answer = await sandbox.read_answer()
            else:
                answer = answer_of_reply(transcript.reply, task.scorer)
        record = session.record()
        trajectory = Trajectory(
            task_id=task.id,
            prompt_ids=record.prompt_ids,
            turns=transcript.turns,
            stop=transcript.stop,
            answer=answer,
            episode_id=request.id,
            seconds=time.monotonic() - started,
            chat=record.chat,
        )
        reward = await judge(
            self.scoring, task, transcript.stop, answer, settings=self._settings, overlong=overlong
        )
        return Rollout(trajectory, reward, task)
