"""Which tasks a curriculum drew and which took the places of groups that taught nothing, computed again.

A draw goes by the seed and by what the generations before it were rewarded with, all of which the ledger and
the journal have: the curriculum itself is asked once more, from its first generation on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sandbox_rl.ledger import Group, SampleEnd, Update
from sandbox_rl.rollout.order import of_group
from sandbox_rl.runs.check.accounts import Violation
from sandbox_rl.runs.check.facts import Facts
from sandbox_rl.runs.check.schedule import Schedule
from sandbox_rl.training.curriculum import Curriculum, Outcome


def not_drawn_again(schedule: Schedule) -> str | None:
    """Why a curriculum's draws cannot be computed again; None where they can, or where there are none."""
    if _draws(schedule) and schedule.curriculum.domain_weights and schedule.domains is None:
        return "an earlier version did not write the domains of all tasks"
    return None


def _draws(schedule: Schedule) -> bool:
    return schedule.curriculum.active and not schedule.asynchronous


class Draws:
    """Takes the updates of a ledger in order, each after `Accounts.take` has found its groups complete."""

    def __init__(self, schedule: Schedule, facts: Facts) -> None:
        self._schedule = schedule
        self._facts = facts
        self._curriculum: Curriculum | None = None
        if _draws(schedule) and not_drawn_again(schedule) is None:
            domains = schedule.domains or [""] * len(schedule.tasks)
            self._curriculum = Curriculum(
                dict(zip(schedule.tasks, domains, strict=True)), schedule.curriculum, seed=schedule.seed
            )

    def take(self, update: Update) -> None:
        """Hold the tasks of an update against what was to be drawn.

        Raises:
            Violation: a group is of another task, or was refilled otherwise.
        """
        if self._curriculum is None:
            return
        schedule, count = self._schedule, self._schedule.groups
        by_number: dict[int, list[Group]] = {}
        for group in update.groups:
            by_number.setdefault(group.number, []).append(group)
        for generation in range(schedule.ended_by(update.number - 1), schedule.ended_by(update.number)):
            first = generation * count
            places = [by_number.get(number, []) for number in range(first, first + count)]
            told = _Generation(f"update {update.number}", generation, first, places)
            local = max(1, count // schedule.processes_of(update.number))
            self._curriculum.record(self._replay(self._curriculum, told, local))

    def _replay(self, curriculum: Curriculum, told: _Generation, local: int) -> list[Outcome]:
        """What one generation says about its tasks, in the order in which that was counted.

        Args:
            local: groups of one process.
        """
        schedule = self._schedule
        numbers = range(told.first, told.first + len(told.places))
        order = [of_group(schedule.tasks, n, seed=schedule.seed, shuffle=schedule.shuffle) for n in numbers]
        drawn = curriculum.draw(order, told.number)
        standing = [told.at(place, None) for place in range(len(drawn))]
        for place, (group, due) in enumerate(zip(standing, drawn, strict=True)):
            if group is None or group.task != due:
                found = "no" if group is None else repr(group.task)
                raise Violation(f"{told.name(place)} has the task {found}, the curriculum drew {due!r}")
        groups = [group for group in standing if group is not None]
        left_out: list[list[Group]] = [[] for _ in range(0, len(groups), local)]
        used, broken = set(drawn), set[int]()
        for number in range(schedule.curriculum.refill_rounds):
            equal = [
                place
                for place, group in enumerate(groups)
                if place // local not in broken and not self._teaches(group)
            ]
            names = curriculum.substitutes([groups[p].task for p in equal], used, told.number, number) or ()
            chosen = {p: name for p, name in zip(equal, names, strict=False) if name is not None}
            told.check_round(number, chosen)
            used.update(chosen.values())
            for place in chosen:
                fresh = told.at(place, number)
                assert fresh is not None, "just checked"
                if all(sample.end is SampleEnd.NOT_JUDGED for sample in fresh.samples):
                    broken.add(place // local)  # every episode of that process failed: it refilled no more
                    continue
                dropped = fresh
                if self._teaches(fresh):
                    dropped, groups[place] = groups[place], fresh
                left_out[place // local].append(dropped)
        in_order = [
            group
            for process, others in enumerate(left_out)
            for group in (*groups[process * local : (process + 1) * local], *others)
        ]
        return [self._outcome(group) for group in in_order]

    def _rewards(self, group: Group) -> list[float]:
        facts = [self._facts.get(sample.episode) for sample in group.samples]
        return [fact.reward for fact in facts if fact is not None and fact.reward is not None]

    def _teaches(self, group: Group) -> bool:
        return len(set(self._rewards(group))) > 1

    def _outcome(self, group: Group) -> Outcome:
        rewards = [min(1.0, max(0.0, reward)) for reward in self._rewards(group)]
        return group.task, sum(rewards), len(rewards)


@dataclass(frozen=True, slots=True)
class _Generation:
    """What the ledger says of one generation.

    Args:
        where: for messages.
        first: number of its first group.
        places: by place, the group as drawn and those of the rounds.
    """

    where: str
    number: int
    first: int
    places: Sequence[Sequence[Group]]

    def at(self, place: int, refill: int | None) -> Group | None:
        return next((group for group in self.places[place] if group.refill == refill), None)

    def name(self, place: int) -> str:
        return f"{self.where}, group {self.first + place}"

    def check_round(self, number: int, due: dict[int, str]) -> None:
        """Raises Violation unless exactly these places were refilled in a round, by these tasks."""
        for place in range(len(self.places)):
            group = self.at(place, number)
            found = None if group is None else group.task
            if found != due.get(place):
                raise Violation(
                    f"{self.name(place)} was refilled with {found!r} in round {number}, "
                    f"the curriculum drew {due.get(place)!r}"
                )
