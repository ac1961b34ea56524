"""Many episodes, each with its retries: the first groups of them to end, or all.

The only module that decides what a failure was. Whatever the policy did is in the trajectory; an
`InfraFault` is retried with a fresh sandbox and, when it persists, becomes a rollout without reward.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.errors import InfraFault, UserError
from sandbox_rl.observer import ObserverFailed
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory

logger = logging.getLogger(__name__)

RunOne = Callable[[EpisodeRequest], Coroutine[Any, Any, Rollout]]


@dataclass(frozen=True, slots=True)
class FirstGroups:
    """What became of the groups that were started.

    Args:
        ended: place of a group → its rollouts, for exactly as many groups as were to be kept.
        seconds: place → from the start of all to the end of that group.
        cut: episodes that had ended in groups that were cancelled.
        cut_after: seconds from the start until the others were cancelled.
    """

    ended: Mapping[int, Sequence[Rollout]]
    seconds: Mapping[int, float]
    cut: Sequence[Rollout]
    cut_after: float


async def first_groups(
    groups: Sequence[Sequence[EpisodeRequest]],
    run_one: RunOne,
    *,
    keep: int,
) -> FirstGroups:
    """Start all groups and return when `keep` of them have ended and the others are gone.

    Args:
        run_one: one episode with its retries, within its own deadline.

    Raises:
        InfraFault: every episode of the groups kept failed on our side.
        UserError: what `run_one` raises.
    """
    assert 0 <= keep <= len(groups)
    found: list[dict[int, Rollout]] = [{} for _ in groups]
    seconds: dict[int, float] = {}
    enough = asyncio.Event()
    started = time.monotonic()

    async def one(place: int, sample: int) -> None:
        found[place][sample] = await run_one(groups[place][sample])
        if len(found[place]) == len(groups[place]) and len(seconds) < keep:
            seconds[place] = time.monotonic() - started
            if len(seconds) == keep:
                enough.set()

    async with all_done() as scope:
        tasks = [
            scope.create_task(one(place, sample))
            for place, group in enumerate(groups)
            for sample in range(len(group))
        ]
        if keep:
            await enough.wait()
        for task in tasks:
            task.cancel()
    ended = {place: [found[place][i] for i in range(len(groups[place]))] for place in sorted(seconds)}
    _check_some_played([rollout for group in ended.values() for rollout in group])
    cut = [
        found[place][i] for place in range(len(groups)) if place not in ended for i in sorted(found[place])
    ]
    return FirstGroups(ended, seconds, cut, max(seconds.values(), default=0.0))


def _check_some_played(rollouts: Sequence[Rollout]) -> None:
    if rollouts and all(r.trajectory.stop is StopReason.INFRA_FAULT for r in rollouts):
        raise InfraFault(
            f"all {len(rollouts)} episodes failed on our side; the first: {rollouts[0].trajectory.fault}"
        )


@asynccontextmanager
async def all_done() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure comes out as itself; it says it all, the rest was cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise (first.cause if isinstance(first, ObserverFailed) else first) from None


async def with_retries(
    request: EpisodeRequest,
    attempt: RunOne,
    settings: RolloutSettings,
    *,
    budget_s: float,
    prompt_ids: Callable[[Task], tuple[int, ...]],
) -> Rollout:
    """One episode, tried again after each fault of ours; without a reward where it persists.

    Args:
        attempt: one whole try: episode, answer, reward.
        budget_s: seconds that a try may take.
        prompt_ids: those of an episode that is lost to a fault.
    """
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
