"""The first groups to end out of more: the rest is cancelled, whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.errors import InfraFault
from sandbox_rl.rollout.slots import RunOne, all_done
from sandbox_rl.types import Rollout, StopReason

__all__ = ["FirstGroups", "first_groups"]


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
    assert 0 < keep <= len(groups)
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
        await enough.wait()
        for task in tasks:
            task.cancel()
    ended = {place: [found[place][i] for i in range(len(groups[place]))] for place in sorted(seconds)}
    kept = [rollout for group in ended.values() for rollout in group]
    if all(r.trajectory.stop is StopReason.INFRA_FAULT for r in kept):
        raise InfraFault(
            f"all {len(kept)} episodes failed on our side; the first: {kept[0].trajectory.fault}"
        )
    cut = [
        found[place][i] for place in range(len(groups)) if place not in ended for i in sorted(found[place])
    ]
    return FirstGroups(ended, seconds, cut, max(seconds.values()))
