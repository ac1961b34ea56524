"""The bound on staleness without a preference for short episodes, in virtual time."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from sandbox_rl.ledger import Group
from sandbox_rl.training.asynchronous.progress import Admission, GroupProgress
from sandbox_rl.training.groups import advantages
from sandbox_rl.training.samples import FinishedGroup, Sample, failed_group

SIZE = 4
"""Samples of a group."""
TOKENS = 4


@dataclass(frozen=True)
class Episode:
    """Of one sample: how long it takes, in updates, what it earns, and what the policy chose."""

    duration: float
    reward: float
    choice: int = 0


@dataclass
class World:
    """Sampling and updating side by side; an update takes one unit of time, episodes take theirs.

    Args:
        draw: (number, sample, version) → that episode; the version is that of its first turn.
        update: called with the trained samples and their episodes.
        drop: the rule that is not ours: train in the order of arrival, drop each sample that is too old.
    """

    draw: Callable[[int, int, int], Episode]
    update: Callable[[list[tuple[Sample, Episode]]], None] = lambda _: None
    max_staleness: int = 4
    groups_per_update: float = 4
    at_once: int = 48
    drop: bool = False
    progress: GroupProgress = field(default_factory=GroupProgress)
    step: int = 0
    ages: Counter[int] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    episodes: dict[tuple[int, int], Episode] = field(default_factory=dict)
    trained: Counter[tuple[int, int]] = field(default_factory=Counter)

    def run(self, updates: int) -> World:
        admission = Admission(
            self.progress,
            max_staleness=self.max_staleness,
            tokens=int(self.groups_per_update * SIZE * TOKENS),
            at_once=self.at_once,
        )
        now, free_at = 0.0, 0.0
        queued: list[int] = []
        running: list[tuple[float, int, list[int]]] = []
        computing = False
        while self.step < updates or computing:
            if computing and now >= free_at:
                self.progress.finish_update()
                self.step += 1
                computing = False
            if not computing and self.step < updates:
                queued += self._admit(admission)
                if admission.ready(self.step) or (self.drop and self._enough()):
                    groups = admission.compose(self.step) if not self.drop else self._first_to_arrive()
                    self._train(groups)
                    computing, free_at = True, now + 1
                    queued += self._admit(admission)
            while queued and len(running) < self.at_once:
                number = queued.pop(0)
                drawn = [self.draw(number, i, self.step) for i in range(SIZE)]
                self.episodes |= {(number, i): episode for i, episode in enumerate(drawn)}
                heapq.heappush(running, (now + max(e.duration for e in drawn), number, [self.step] * SIZE))
            nexts = [running[0][0]] if running else []
            nexts += [free_at] if computing else []
            if not nexts:
                assert self.step >= updates, "nobody is waited for: it stands still"
                break
            now = min(nexts)
            while running and running[0][0] <= now:
                _, number, versions = heapq.heappop(running)
                admission.arrive(self.finished(number, versions))
        return self

    def _admit(self, admission: Admission) -> list[int]:
        if self.drop:  # as many as there is capacity for, whatever is under way
            free = self.at_once - len(self.progress.running)
            return [self.progress.admit(self.step) for _ in range(free)]
        return admission.admit(self.step, self.step)

    def finished(self, number: int, versions: list[int]) -> FinishedGroup:
        episodes = [self.episodes[number, i] for i in range(SIZE)]
        found = advantages([e.reward for e in episodes], "rloo")
        samples = tuple(
            Sample(
                group=number,
                index=i,
                episode=f"{number}-{i}",
                input_ids=np.arange(TOKENS) + 1,
                completion_mask=np.ones(TOKENS, np.int64),
                old_log_probs=np.zeros(TOKENS, np.float32),
                # Turns over time: the first is the oldest.
                versions=np.linspace(versions[i], self.step, TOKENS).astype(np.int32),
                advantage=float(found[i] or 0.0),
                reward=episodes[i].reward,
            )
            for i in range(SIZE)
        )
        return FinishedGroup(Group(number, "", None, ()), samples)

    def _enough(self) -> bool:
        return len(self.progress.waiting) >= self.groups_per_update

    def _first_to_arrive(self) -> list[FinishedGroup]:
        """What TRL does: single samples whose oldest turn is too old are gone."""
        groups = [group for _, group in self.progress.waiting]
        self.progress.pack(groups)
        return [
            FinishedGroup(
                g.record, tuple(s for s in g.samples if s.ages(self.step).max() <= self.max_staleness)
            )
            for g in groups
        ]

    def _train(self, groups: list[FinishedGroup]) -> None:
        samples = [s for group in groups for s in group.samples]
        self.sizes.append(len(groups))
        for s in samples:
            self.ages.update(s.ages(self.step).tolist())
            self.trained[s.group, s.index] += 1
        self.update([(s, self.episodes[s.group, s.index]) for s in samples])


def lasting(number: int, index: int, version: int) -> Episode:
    """1 to 8 updates, by the group's number and its sample's."""
    return Episode(duration=random.Random(f"{number}/{index}").randint(1, 8), reward=index % 2)


def shares(world: World) -> dict[int, float]:
    """Duration → the share of such episodes that was trained, of those begun well before the end."""
    last = max(number for number, _ in world.trained)
    begun = Counter(int(e.duration) for (n, _), e in world.episodes.items() if n < last - 200)
    trained = Counter(int(world.episodes[key].duration) for key in world.trained if key[0] < last - 200)
    return {duration: trained[duration] / begun[duration] for duration in sorted(begun)}


@pytest.mark.parametrize("max_staleness", [0, 1, 2, 4, 16])
def test_episodes_of_every_length_are_trained_alike(max_staleness):
    world = World(lasting, max_staleness=max_staleness).run(300)
    found = shares(world)
    assert set(found) == set(range(1, 9))
    assert min(found.values()) >= 0.99 * max(found.values())
    assert max(found.values()) == 1.0
    assert set(world.trained.values()) == {1}, "no sample twice"
    assert max(world.ages) <= max_staleness, "the bound holds for every token"


@pytest.mark.parametrize("max_staleness", [2, 4])
def test_dropping_what_is_too_old_is_not_alike(max_staleness):
    """The same measurement finds out the rule that drops."""
    found = shares(World(lasting, max_staleness=max_staleness, drop=True).run(300))
    assert found[8] < 0.5 * found[1]


def test_the_whole_run_counts_up_to_what_was_under_way():
    """Nothing is left behind for good: what is not trained at the end was still running or waiting."""
    world = World(lasting).run(300)
    under_way = set(world.progress.running) | {g.number for _, g in world.progress.waiting}
    everything = {number for number, _ in world.episodes}
    assert everything - {number for number, _ in world.trained} <= under_way
    assert len(under_way) <= 48 + 4 + 1


FROZEN = 40
"""Updates without learning at first: then as many episodes of each age end as ever will."""


def bandit(*, drop: bool, seed: int) -> float:
    """Chance of the better choice after training: it pays 1 and lasts 6 updates; the other 0.6, and 1."""
    history = [-1.0]  # logit by version
    rng = random.Random(seed)

    def chance(version: int) -> float:
        return 1 / (1 + math.exp(-history[version]))

    def draw(number: int, index: int, version: int) -> Episode:
        return Episode(6.0, 1.0, 1) if rng.random() < chance(version) else Episode(1.0, 0.6, 0)

    def update(trained: list[tuple[Sample, Episode]]) -> None:
        now, gradient = chance(-1), 0.0
        for sample, episode in trained:
            old = chance(int(sample.versions[0]))
            ratio = now / old if episode.choice else (1 - now) / (1 - old)
            gradient += min(ratio, 2.0) * sample.advantage * (episode.choice - now)
        learning = len(history) > FROZEN
        history.append(history[-1] + learning * 2.0 * gradient / max(1, len(trained)))

    World(draw, update, drop=drop).run(FROZEN + 200)
    return chance(-1)


def test_a_choice_that_takes_long_and_pays_more_is_learnt():
    assert min(bandit(drop=False, seed=seed) for seed in range(3)) > 0.9


def test_the_rule_that_drops_does_not_learn_it():
    """Why staleness must not be judged by an episode's length: the better choice is never seen."""
    assert max(bandit(drop=True, seed=seed) for seed in range(3)) < 0.5


def test_admission_waits_while_enough_is_under_way():
    progress = GroupProgress()
    admission = Admission(progress, max_staleness=2, tokens=4 * SIZE * TOKENS, at_once=32)
    first = admission.admit(0, 0)
    assert first == list(range(32)), "sizes are not known yet: what can run side by side"
    assert admission.admit(0, 0) == []
    world = World(lasting)
    for number in first:
        world.episodes |= {(number, i): lasting(number, i, 0) for i in range(SIZE)}
        admission.arrive(world.finished(number, [0] * SIZE))
    assert admission.ready(0)
    assert [g.number for g in admission.compose(0)] == [0, 1, 2, 3]
    assert admission.admit(0, 0) == [], "28 wait, and no more than two updates' worth may"


def test_a_group_larger_than_an_update_is_one():
    """Long episodes: as many run side by side as may be old."""
    progress = GroupProgress()
    admission = Admission(progress, max_staleness=4, tokens=TOKENS, at_once=8)
    world = World(lasting)
    assert admission.admit(0, 0) == list(range(8))
    world.episodes = {(n, i): lasting(n, i, 0) for n in range(99) for i in range(SIZE)}
    for number in range(8):
        admission.arrive(world.finished(number, [0] * SIZE))
    assert admission.places == 4
    assert admission.idle == 4
    assert [g.number for g in admission.compose(0)] == [0]


def test_an_update_is_held_for_a_group_that_would_be_too_old_for_the_next():
    progress = GroupProgress()
    admission = Admission(progress, max_staleness=1, tokens=SIZE * TOKENS, at_once=3)
    world = World(lasting)
    world.episodes = {(n, i): lasting(n, i, 0) for n in range(9) for i in range(SIZE)}
    assert admission.admit(0, 0) == [0, 1, 2]
    admission.arrive(world.finished(1, [0] * SIZE))
    assert admission.ready(0)
    assert [g.number for g in admission.compose(0)] == [1]
    progress.finish_update()
    assert not admission.ready(1), "0 and 2 are of version 0 and would be 2 updates old after this one"
    admission.arrive(world.finished(2, [0] * SIZE))
    assert not admission.ready(1)
    admission.arrive(world.finished(0, [0] * SIZE))
    assert admission.ready(1)
    assert [g.number for g in admission.compose(1)] == [0, 2], "both, though one would fill the update"


def test_groups_that_cannot_be_trained_make_room_at_once():
    progress = GroupProgress()
    admission = Admission(progress, max_staleness=0, tokens=SIZE * TOKENS, at_once=2)
    for round_ in range(5):
        assert admission.admit(0, 0) == [2 * round_, 2 * round_ + 1]
        for number in (2 * round_, 2 * round_ + 1):
            admission.arrive(failed_group(number, "", (), ""))
        assert not admission.ready(0)


def test_weights_that_are_not_published_yet_are_not_sampled_with_beyond_the_bound():
    progress = GroupProgress()
    admission = Admission(progress, max_staleness=0, tokens=SIZE * TOKENS, at_once=2)
    assert admission.admit(3, 2) == [], "its tokens would be one update old"
    assert admission.admit(3, 3) == [0, 1]
