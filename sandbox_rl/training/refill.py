"""The groups of a generation: as drawn, and refilled.

Groups whose rewards are all equal give no gradient: other tasks take their places.

The idea of DAPO's dynamic sampling (arXiv 2503.14476, 3.2), within a limit: the trainer needs whole
batches, so what is still equal after the last round is trained on as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sandbox_rl.errors import InfraFault
from sandbox_rl.ledger import Group
from sandbox_rl.training.agreement import together
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.groups import NumberedGroup, teaches
from sandbox_rl.types import Rollout

logger = logging.getLogger(__name__)

Chosen = tuple[int, str]
"""A place among the groups as drawn, and the task that may fill it."""


@dataclass(frozen=True, slots=True)
class Refilled:
    """What became of the groups as drawn.

    Args:
        groups: are trained on, as many and in the same places as were drawn.
        left_out: the others.
        failed: round → what was chosen in it, where every episode failed on our side.
        metrics: further groups rolled out, and of the places: replaced, and still without a difference.
    """

    groups: tuple[NumberedGroup, ...]
    left_out: tuple[NumberedGroup, ...] = ()
    failed: Mapping[int, Sequence[Chosen]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def refill(
    drawn: Sequence[NumberedGroup],
    curriculum: Curriculum,
    generation: int,
    roll_out: Callable[[Sequence[Chosen], int], Sequence[Sequence[Rollout]]],
) -> Refilled:
    """Replace groups that teach nothing by groups of other tasks that do, for the curriculum's rounds.

    Args:
        roll_out: what was chosen, number of the round → a group for each.
    """
    groups, left_out = list(drawn), []
    failed: dict[int, Sequence[Chosen]] = {}
    used = {group.task for group in drawn}
    count = len(drawn)
    broken = False
    for number in range(curriculum.settings.refill_rounds):
        places = [place for place, group in enumerate(groups) if not (broken or teaches(group.rollouts))]
        found = curriculum.substitutes([groups[place].task for place in places], used, generation, number)
        if found is None:
            break
        chosen = [(place, name) for place, name in zip(places, found, strict=True) if name is not None]
        used.update(name for _, name in chosen)
        fresh: Sequence[Sequence[Rollout]] = ()
        with together():  # also those that have nothing to replace
            try:
                fresh = roll_out(chosen, number) if chosen else ()
            except InfraFault as fault:
                # What was drawn can be trained on; if the machine is broken, the next step says so.
                logger.warning("generation %d: no refill, %s", generation, fault)
                broken, failed[number] = True, chosen
        if broken:
            continue
        count += len(fresh)
        for (place, _), rollouts in zip(chosen, fresh, strict=True):
            group = NumberedGroup(groups[place].number, number, rollouts)
            keep, drop = (group, groups[place]) if teaches(rollouts) else (groups[place], group)
            groups[place] = keep
            left_out.append(drop)
    return Refilled(
        tuple(groups),
        tuple(left_out),
        failed,
        {
            "refill/extra_groups": float(count - len(drawn)),
            "refill/replaced": sum(a is not b for a, b in zip(groups, drawn, strict=True)) / len(groups),
            "refill/still_equal": sum(not teaches(group.rollouts) for group in groups) / len(groups),
        },
    )


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of this process.

    Args:
        number: in the run; step: updates before it.
        first: number, in the run, of the first group of this process.
        size: of a group.
        again: how often it was sampled before, by starts of the run whose records were replaced.
    """

    number: int
    step: int
    first: int
    size: int
    again: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """The groups that a generation begins with.

    Args:
        cut: groups that were cancelled.
        cut_rollouts: episodes that had ended in them.
    """

    groups: tuple[NumberedGroup, ...]
    cut: tuple[Group, ...] = ()
    cut_rollouts: Sequence[Rollout] = ()
    metrics: dict[str, float] = field(default_factory=dict)
