"""The rules that a ledger keeps, one update after the other; the first that is broken is named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.ledger import Group, Sample, SampleEnd, Update
from sandbox_rl.rollout.order import of_group
from sandbox_rl.runs.check.facts import Fact, Facts
from sandbox_rl.runs.check.schedule import Schedule
from sandbox_rl.training.groups import group_of, group_requests
from sandbox_rl.types import Task

_AGAIN = re.compile(r"-r\d+$")
_RETRIED = re.compile(r"^train-\d+\.retried-")
_IN_THE_LOSS = (SampleEnd.USED, SampleEnd.EQUAL_REWARDS)
_CLOSE, _SHARE = 2e-3, 1e-4
"""What an advantage in float32 may differ from ours: TRL divides rounding errors of equal rewards by 1e-4."""


class Violation(Exception):
    """A rule that the records of a run break; the message names the update, the group and the sample."""


class Accounts:
    """Takes the updates of a ledger in order."""

    def __init__(self, schedule: Schedule, facts: Facts) -> None:
        self._schedule = schedule
        self._facts = facts
        self._known = frozenset(schedule.tasks)
        self._final: dict[int, int] = {}
        """Number of a group → update at which it ended permanently."""
        self._cut: dict[int, int] = {}
        """Groups that were cancelled and wait → update."""
        self._oldest: dict[int, int] = {}
        """Of groups used since the last resume: version of their oldest token."""
        self.updates = 0
        self.ends: Counter[SampleEnd] = Counter()

    @property
    def groups(self) -> frozenset[int]:
        """Numbers of the groups that have ended permanently."""
        return frozenset(self._final)

    def take(self, update: Update) -> None:
        """Hold one update against the schedule and the journal.

        Raises:
            Violation: it breaks a rule.
        """
        if update.number != self.updates + 1:
            raise Violation(
                f"update {update.number} follows update {self.updates}, expected {self.updates + 1}"
            )
        self.updates = update.number
        if update.left_out_in_part:
            raise Violation(f"update {update.number} was left out, but not for all of its samples")
        rounds: dict[int, list[Group]] = {}
        for group in update.groups:
            where = _name(update, group)
            self._scheduled(where, group)
            due = self._due(group)
            facts = [
                self._sampled(f"{where}, sample {i}", group, sample, due[i])
                for i, sample in enumerate(group.samples)
            ]
            self._group(where, update, group, facts)
            rounds.setdefault(group.number, []).append(group)
            self._facts.saw(sample.episode for sample in group.samples)
            self.ends.update(sample.end for sample in group.samples)
        for number, found in rounds.items():
            self._rounds(update, number, found)
        if not self._schedule.asynchronous:
            self._whole_generations(update, rounds)

    # --- a group by itself ----------------------------------------------------------------------------

    def _scheduled(self, where: str, group: Group) -> None:
        schedule = self._schedule
        if group.number < 0:
            raise Violation(f"{where}: numbers begin with 0")
        if len(group.samples) != schedule.size:
            raise Violation(f"{where} has {len(group.samples)} samples, expected {schedule.size}")
        if group.task not in self._known:
            raise Violation(f"{where} has the task {group.task!r}, which is none of the training tasks")
        if group.refill is not None and not 0 <= group.refill < schedule.curriculum.refill_rounds:
            raise Violation(
                f"{where} comes from refill round {group.refill}, but curriculum.refill_rounds is "
                f"{schedule.curriculum.refill_rounds}"
            )
        if group.refill is None and not schedule.drawn:
            due = of_group(schedule.tasks, group.number, seed=schedule.seed, shuffle=schedule.shuffle)
            if group.task != due:
                raise Violation(f"{where} has the task {group.task!r}, scheduled was {due!r}")

    def _due(self, group: Group) -> Sequence[EpisodeRequest]:
        """The episodes that the schedule has for a group."""
        return group_requests(
            Task(group.task, "", ""),
            group.number,
            seed=self._schedule.seed,
            size=self._schedule.size,
            refill=group.refill,
            retried=_RETRIED.match(group.samples[0].episode) is not None,
        )

    def _sampled(self, where: str, group: Group, sample: Sample, due: EpisodeRequest) -> Fact | None:
        """The episode of a sample, after its name and its seed were compared with the schedule's."""
        if _AGAIN.sub("", sample.episode) != due.id:
            raise Violation(f"{where} is episode {sample.episode!r}, expected {due.id!r}")
        fact = self._facts.get(sample.episode)
        if fact is None:
            if sample.end is SampleEnd.CUT:
                return None  # cancelled while it was going on
            raise Violation(
                f"{where}: episode {sample.episode!r} is not in the journal, or has not ended there"
            )
        for wrong, what in (
            (bool(fact.damage), f"is damaged in the journal: {fact.damage}"),
            (fact.replaced, "belongs to an update that was done again"),
            (fact.task != group.task, f"is of task {fact.task!r}, not {group.task!r}"),
            (fact.seed != due.seed, f"has the seed {fact.seed}, scheduled was {due.seed}"),
        ):
            if wrong:
                raise Violation(f"{where}: episode {fact.id!r} {what}")
        return fact

    def _group(self, where: str, update: Update, group: Group, facts: Sequence[Fact | None]) -> None:
        ends = {sample.end for sample in group.samples}
        if SampleEnd.CUT in ends:
            return self._is_cut(where, update, group, ends)
        rewards = [None if fact is None else fact.reward for fact in facts]
        equal = len({reward for reward in rewards if reward is not None}) < 2
        if SampleEnd.REFILLED in ends:
            if len(ends) > 1 or not self._schedule.curriculum.refill_rounds:
                raise Violation(f"{where} is refilled in part, or without curriculum.refill_rounds")
            if not equal:
                raise Violation(f"{where} was refilled, but its rewards differ")
            return None
        rule = self._schedule.rule
        due = [None] * len(facts) if rule is None else rule(rewards)
        for index, (sample, fact) in enumerate(zip(group.samples, facts, strict=True)):
            assert fact is not None, "only what was cut has none"
            self._end(f"{where}, sample {index}", sample, fact, equal)
        for index, (sample, fact) in enumerate(zip(group.samples, facts, strict=True)):
            assert fact is not None, "as above"
            at = f"{where}, sample {index}"
            self._advantage(at, sample, fact, due[index])
            self._age(at, update, sample, fact)
        return None

    def _is_cut(self, where: str, update: Update, group: Group, ends: Iterable[SampleEnd]) -> None:
        if set(ends) != {SampleEnd.CUT} or not self._schedule.over_sampled:
            raise Violation(f"{where} was cut in part, or without rollout.over_sample")
        first = self._final.get(group.number, self._cut.get(group.number))
        if first is not None:
            raise Violation(f"{where} was cut, but ended or was cut in update {first} already")
        self._cut[group.number] = update.number

    def _end(self, at: str, sample: Sample, fact: Fact, equal: bool) -> None:
        if fact.reward is None:
            due = SampleEnd.OVERLONG if fact.masked else SampleEnd.NOT_JUDGED
        elif not fact.sampled:
            due = SampleEnd.NO_TOKENS
        else:
            due = SampleEnd.EQUAL_REWARDS if equal else SampleEnd.USED
        by_choice = sample.end is SampleEnd.NOT_FINITE or (
            self._schedule.masks_truncated and sample.end is SampleEnd.OVERLONG
        )
        if sample.end is not due and not (by_choice and due in _IN_THE_LOSS):
            raise Violation(f"{at} ended as {sample.end.value!r}, but its journal says {due.value!r}")

    def _advantage(self, at: str, sample: Sample, fact: Fact, due: float | None) -> None:
        if (sample.advantage is None) != (fact.reward is None):
            raise Violation(f"{at} has the advantage {sample.advantage} and the reward {fact.reward}")
        if due is None or sample.advantage is None:
            return
        if not abs(sample.advantage - due) <= _CLOSE + _SHARE * abs(due):
            raise Violation(
                f"{at} has the advantage {sample.advantage:.6g}, the rewards of its group give {due:.6g}"
            )

    def _age(self, at: str, update: Update, sample: Sample, fact: Fact) -> None:
        if not self._schedule.asynchronous or sample.end not in _IN_THE_LOSS or fact.oldest is None:
            return
        age, bound = update.number - 1 - fact.oldest, self._schedule.bound(update.number)
        if age > bound:
            raise Violation(f"{at} has a token that was {age} updates old, grpo.max_staleness is {bound}")
        if update.number > self._schedule.resumed_at:
            number = group_of(sample.episode)
            assert number is not None, "its name was compared"
            self._oldest[number] = min(self._oldest.get(number, fact.oldest), fact.oldest)

    # --- groups among each other ----------------------------------------------------------------------

    def _rounds(self, update: Update, number: int, found: Sequence[Group]) -> None:
        """The group as drawn and those that were to take its place: one of them stands."""
        where = f"update {update.number}, group {number}"
        if all(sample.end is SampleEnd.CUT for group in found for sample in group.samples):
            if len(found) > 1:
                raise Violation(f"{where} was cut twice")
            return
        rounds = [group.refill for group in found]
        if None not in rounds or len(set(rounds)) < len(rounds):
            names = ", ".join("as drawn" if r is None else f"round {r}" for r in rounds)
            raise Violation(f"{where} is in the ledger {names}; expected once as drawn, once for each round")
        stand = [
            g
            for g in found
            if not all(s.end is SampleEnd.REFILLED for s in g.samples)
            and not (g.refill is not None and all(s.end is SampleEnd.NOT_JUDGED for s in g.samples))
        ]
        if len(stand) != 1:
            raise Violation(f"{where} has {len(stand)} groups that were handed to the trainer, expected 1")
        if number in self._final:
            raise Violation(f"{where} was used twice: it ended in update {self._final[number]} already")
        again = _RETRIED.match(stand[0].samples[0].episode) is not None
        if again != (number in self._cut):
            raise Violation(
                f"{where} was {'never' if again else ''} cut, but is {'' if again else 'not '}sampled again"
            )
        self._cut.pop(number, None)
        self._final[number] = update.number

    def _whole_generations(self, update: Update, rounds: Iterable[int]) -> None:
        schedule = self._schedule
        first, last = (schedule.ended_by(update.number - 1 + i) * schedule.groups for i in (0, 1))
        ended = {number for number in rounds if self._final.get(number) == update.number}
        if schedule.over_sampled:
            if len(ended) != last - first:
                raise Violation(f"update {update.number} has {len(ended)} groups, expected {last - first}")
            return
        due = set(range(first, last))
        if lost := sorted(due - ended):
            raise Violation(f"update {update.number}: group {lost[0]} is lost: it was scheduled for it")
        if odd := sorted(ended - due):
            due_at = schedule.update_of(odd[0])
            raise Violation(f"update {update.number}: group {odd[0]} was scheduled for update {due_at}")

    # --- at the end -----------------------------------------------------------------------------------

    def finish(self) -> int:
        """Look for what is missing; returns the episodes whose updates have not finished.

        Raises:
            Violation: a group or an episode is lost.
        """
        self._holes()
        pending = 0
        for fact in self._facts.unseen():
            number = group_of(fact.id)
            if number is None or number in self._final:
                raise Violation(f"episode {fact.id!r} is lost: its group ended, but the ledger lacks it")
            schedule = self._schedule
            by_number = not (schedule.asynchronous or schedule.over_sampled)
            if by_number and schedule.update_of(number) <= self.updates:
                raise Violation(f"episode {fact.id!r} is lost: its update has finished without it")
            pending += 1
        damaged = self._facts.damaged()
        if damaged is not None:
            raise Violation(f"episode {damaged.id!r} is damaged in the journal: {damaged.damage}")
        if (line := self._facts.damaged_line) is not None:
            raise Violation(f"damaged in the journal: {line}")
        return pending

    def _holes(self) -> None:
        schedule = self._schedule
        highest = max((*self._final, *self._cut), default=-1)
        if schedule.over_sampled and len(schedule.processes) == 1:
            (world,) = schedule.processes
            tops = {n % world: n for n in sorted((*self._final, *self._cut))}
            ended = self._final.keys() | self._cut.keys()
            missing = [n for n in range(highest) if n not in ended and n < tops.get(n % world, -1)]
            if missing:
                raise Violation(f"group {missing[0]} is lost: later ones of its process have ended")
        if not schedule.asynchronous:
            return
        bound = max(bound for _, bound in schedule.staleness)
        since, lost = self.updates, None
        for number in range(highest, -1, -1):
            # Numbers are admitted in their order, so none with newer weights than a later one.
            since = min(since, self._oldest.get(number, since))
            if number not in self._final and self.updates > since + bound + 1:
                lost = number, since
        if lost is not None:
            raise Violation(
                f"group {lost[0]} is lost: a later one that was sampled with the weights of update {lost[1]} "
                f"was trained, and after {self.updates} updates it would be too old"
            )


def _name(update: Update, group: Group) -> str:
    round_ = "" if group.refill is None else f", refill round {group.refill}"
    return f"update {update.number}, group {group.number}{round_}"
