"""Episodes in a bounded number of slots, each with its retries.

The only module that decides what a failure was. Whatever the policy did is in the trajectory; an
`InfraFault` is retried with a fresh sandbox and, when it persists, becomes a rollout without reward.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.cooperate import give_way
from sandbox_rl.errors import InfraFault, UserError
from sandbox_rl.observer import Observer, ObserverFailed
from sandbox_rl.rollout.disk import DiskSpace
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory

__all__ = ["RunOne", "all_done", "episode_runner", "run_requests"]

logger = logging.getLogger(__name__)

RunOne = Callable[[EpisodeRequest], Coroutine[Any, Any, Rollout]]


def episode_runner(
    attempt: RunOne,
    *,
    settings: RolloutSettings,
    budget_s: float,
    prompt_ids: Callable[[Task], tuple[int, ...]],
    observer: Observer,
    disk: DiskSpace | None = None,
) -> RunOne:
    """What runs one episode: with retries, and waiting while `settings.concurrency` others run.

    Args:
        attempt: one whole try: episode, answer, reward.
        budget_s: seconds that a try may take.
        prompt_ids: those of an episode that is lost to a fault.
        observer: is told of every rollout.
        disk: waited for before the first try; none of the episode's time.
    """
    slots = asyncio.Semaphore(settings.concurrency)

    async def one(request: EpisodeRequest) -> Rollout:
        async with slots:
            if disk is not None:
                await disk.wait()
            rollout = await _with_retries(request, attempt, settings, budget_s, prompt_ids)
        await give_way()  # an observer may write a journal line of megabytes
        observer.rolled_out(request, rollout)
        return rollout

    return one


async def run_requests(requests: Sequence[EpisodeRequest], run_one: RunOne) -> list[Rollout]:
    """Run all requests side by side.

    Returns, Raises:
        As `RolloutEngine.run`.
    """
    async with all_done() as group:
        tasks = [group.create_task(run_one(request)) for request in requests]
    rollouts = [task.result() for task in tasks]
    if rollouts and all(r.trajectory.stop is StopReason.INFRA_FAULT for r in rollouts):
        raise InfraFault(
            f"all {len(rollouts)} episodes failed on our side; the first: {rollouts[0].trajectory.fault}"
        )
    return rollouts


@asynccontextmanager
async def all_done() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure comes out as itself; it says it all, the rest was cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise (first.cause if isinstance(first, ObserverFailed) else first) from None


async def _with_retries(
    request: EpisodeRequest,
    attempt: RunOne,
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
                return await attempt(replace(request, attempt=number))
        except (UserError, ObserverFailed):
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
