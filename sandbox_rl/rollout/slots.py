"""Episodes in a bounded number of slots, each with its retries: what every engine has in common.

The only module that decides what a failure was. Whatever the policy did is in the trajectory; an
`InfraFault` is retried with a fresh sandbox and, when it persists, becomes a rollout without reward.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from sandbox_rl.cooperate import give_way
from sandbox_rl.errors import InfraFault, UserError
from sandbox_rl.rollout.settings import EpisodeRequest, RolloutSettings
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory

__all__ = ["episode_runner", "run_requests"]

logger = logging.getLogger(__name__)


def episode_runner(
    attempt: Callable[[EpisodeRequest], Awaitable[Rollout]],
    *,
    settings: RolloutSettings,
    budget_s: float,
    prompt_ids: Callable[[Task], tuple[int, ...]] = lambda _: (),
) -> Callable[[EpisodeRequest], Awaitable[Rollout]]:
    """What runs one episode: with retries, and waiting while `settings.concurrency` others run.

    Args:
        attempt: one whole try: episode, answer, reward.
        budget_s: seconds that a try may take.
        prompt_ids: those of an episode that is lost to a fault.
    """
    slots = asyncio.Semaphore(settings.concurrency)

    async def one(request: EpisodeRequest) -> Rollout:
        async with slots:
            return await _with_retries(request, attempt, settings, budget_s, prompt_ids)

    return one


async def run_requests(
    requests: Sequence[EpisodeRequest],
    attempt: Callable[[EpisodeRequest], Awaitable[Rollout]],
    *,
    settings: RolloutSettings,
    budget_s: float,
    prompt_ids: Callable[[Task], tuple[int, ...]] = lambda _: (),
    on_rollout: Callable[[EpisodeRequest, Rollout], None] | None = None,
) -> list[Rollout]:
    """Run all requests side by side, as `episode_runner` does.

    Returns, Raises:
        As `RolloutEngine.run`.
    """
    run_one = episode_runner(attempt, settings=settings, budget_s=budget_s, prompt_ids=prompt_ids)

    async def one(request: EpisodeRequest) -> Rollout:
        rollout = await run_one(request)
        if on_rollout is not None:
            await give_way()  # it may write a journal line of megabytes
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
