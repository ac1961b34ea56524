"""Groups whose rewards are all equal give no gradient: other tasks take their places.

The idea of DAPO's dynamic sampling (arXiv 2503.14476, 3.2), within a limit: the trainer needs whole
batches, so what is still equal after the last round is trained on as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandbox_rl.errors import InfraFault
from sandbox_rl.training.agreement import together
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.groups import teaches
from sandbox_rl.types import Rollout

__all__ = ["Refilled", "refill"]

logger = logging.getLogger(__name__)

Group = Sequence[Rollout]


@dataclass(frozen=True, slots=True)
class Refilled:
    """`groups` are trained on, as many and in the same places as were drawn; `left_out` are the others."""

    groups: tuple[Group, ...]
    left_out: tuple[Group, ...]
    metrics: dict[str, float]
    """Further groups rolled out, and of the places: replaced, and still without a difference."""


def refill(
    drawn: Sequence[Group],
    curriculum: Curriculum,
    generation: int,
    roll_out: Callable[[Sequence[tuple[int, str]], int], Sequence[Group]],
) -> Refilled:
    """Replace groups that teach nothing by groups of other tasks that do, for the curriculum's rounds.

    Args:
        roll_out: ((place, task id) of each, number of the round) → a group for each.
    """
    groups, left_out = list(drawn), []
    used = {group[0].task.id for group in drawn}
    count = len(drawn)
    broken = False
    for number in range(curriculum.refill_rounds):
        places = [place for place, group in enumerate(groups) if not (broken or teaches(group))]
        found = curriculum.substitutes(
            [groups[place][0].task.id for place in places], used, generation, number
        )
        if found is None:
            break
        chosen = [(place, name) for place, name in zip(places, found, strict=True) if name is not None]
        used.update(name for _, name in chosen)
        fresh: Sequence[Group] = ()
        with together():  # also those that have nothing to replace
            try:
                fresh = roll_out(chosen, number) if chosen else ()
            except InfraFault as fault:
                # What was drawn can be trained on; if the machine is broken, the next step says so.
                logger.warning("generation %d: no refill, %s", generation, fault)
                broken = True
        if broken:
            continue
        count += len(fresh)
        for (place, _), group in zip(chosen, fresh, strict=True):
            keep, drop = (group, groups[place]) if teaches(group) else (groups[place], group)
            groups[place] = keep
            left_out.append(drop)
    return Refilled(
        tuple(groups),
        tuple(left_out),
        {
            "refill/extra_groups": float(count - len(drawn)),
            "refill/replaced": sum(a is not b for a, b in zip(groups, drawn, strict=True)) / len(groups),
            "refill/still_equal": sum(not teaches(group) for group in groups) / len(groups),
        },
    )
