"""Early stop without a preference for short episodes, shown on synthetic durations."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import ConfigError, ModelError
from sandbox_rl.rollout.order import of_group
from sandbox_rl.rollout.over_sampling import OverSampling, Plan

SIZE, SHARE, STEPS, TASKS = 8, 0.25, 500, 40


def duration(group: int, attempt: int = 0) -> float:
    """Of a group: its task decides how long it tends to be, its seeds how long it is. A long tail."""
    task = of_group(range(TASKS), group, seed=1)
    return random.Random(f"{task}").lognormvariate(0, 0.5) * random.Random(
        f"{group}/{attempt}"
    ).lognormvariate(0, 1.0)


def train(
    rule: OverSampling, steps: int, lengths: Callable[[int], float] = duration
) -> list[tuple[int, float]]:
    """Group and length of all that is trained on: the first to end are kept."""
    trained = []
    for step in range(steps):
        plan = rule.plan(SIZE)
        took = {place: lengths(group) for place, group in enumerate(plan.groups)}
        first = dict(sorted(took.items(), key=lambda item: item[1])[: plan.keep])
        trained += [(plan.groups[place], seconds) for place, seconds in first.items()]
        rule.record(plan, step, first, max(first.values()))
    return trained


def distance(a: list[float], b: list[float]) -> float:
    """Kolmogorov-Smirnov distance, over its bound at a level of 0.1 % (1.95 for two large samples)."""
    points = np.sort(np.concatenate([a, b]))
    gap = np.abs(
        np.searchsorted(np.sort(a), points, "right") / len(a)
        - np.searchsorted(np.sort(b), points, "right") / len(b)
    ).max()
    return float(gap / (1.95 * np.sqrt((len(a) + len(b)) / (len(a) * len(b)))))


# Other groups than those of the runs below, so that equality is one of distributions.
WITHOUT = [duration(group) for group in range(10**6, 10**6 + SIZE * STEPS)]


def test_lengths_are_those_of_training_without_early_stop():
    lengths = [seconds for _, seconds in train(OverSampling(SHARE), STEPS)]
    assert distance(lengths, WITHOUT) < 1
    assert np.mean(lengths) == pytest.approx(np.mean(WITHOUT), rel=0.12)


def test_dropping_the_slowest_is_not():
    """The same test finds out the naive rule."""
    lengths, extra = [], round(SHARE * SIZE)
    for step in range(STEPS):
        took = [duration(step * (SIZE + extra) + i) for i in range(SIZE + extra)]
        lengths += sorted(took)[:SIZE]
    assert distance(lengths, WITHOUT) > 2


def test_doing_them_again_with_new_seeds_is_not_either():
    """Why a group that comes back keeps its seeds: else long draws are exchanged for usual ones."""
    tries: dict[int, int] = {}

    def drawn_anew(group: int) -> float:
        tries[group] = tries.get(group, -1) + 1
        return duration(group, tries[group])

    lengths = [seconds for _, seconds in train(OverSampling(SHARE), STEPS, drawn_anew)]
    assert distance(lengths, WITHOUT) > 2


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_every_group_is_trained_once_or_waits(share):
    rule = OverSampling(share)
    trained = [group for group, _ in train(rule, 101)]
    assert len(trained) == len(set(trained)) == 101 * SIZE
    waiting = set(range(max(trained) + 1)) - set(trained)
    state = rule.state()
    assert waiting == {w["group"] for w in state["waiting"] if w["group"] <= max(trained)}
    assert len(state["waiting"]) < SIZE + np.ceil(share * SIZE)
    assert state["next"] == len(trained) + len(state["waiting"])


def test_when_long_steps_come_does_not_depend_on_lengths():
    def kinds(lengths):
        rule, found = OverSampling(SHARE), []
        for step in range(60):
            plan = rule.plan(SIZE)
            found.append(bool(plan.waited))
            order = sorted(range(len(plan.groups)), key=lambda place: lengths(plan.groups[place]))
            rule.record(plan, step, dict.fromkeys(order[: plan.keep], 1.0), 1.0)
        return found

    assert kinds(duration) == kinds(lambda group: -duration(group)) == kinds(lambda group: group)
    assert sum(kinds(duration)) == 12  # one in five: four short steps leave 8 behind


def test_time_is_saved_where_lengths_have_a_tail():
    def seconds(steps):
        return sum(max(duration(group) for group in groups) for groups in steps)

    rule, took, saved = OverSampling(SHARE), 0.0, 0.0
    for step in range(STEPS):
        plan = rule.plan(SIZE)
        times = {place: duration(group) for place, group in enumerate(plan.groups)}
        first = dict(sorted(times.items(), key=lambda item: item[1])[: plan.keep])
        took += max(first.values())
        saved += rule.record(plan, step, first, max(first.values())).get("over_sampling/saved_s", 0.0)
    without = seconds([range(step * SIZE, (step + 1) * SIZE) for step in range(STEPS)])
    assert took < 0.8 * without
    assert saved > 0


def test_ranks_have_groups_of_their_own():
    ranks = [OverSampling(SHARE, rank=rank, world=3) for rank in range(3)]
    trained = [group for rule in ranks for group, _ in train(rule, 20)]
    assert len(trained) == len(set(trained))
    everything = set(trained) | {w["group"] for rule in ranks for w in rule.state()["waiting"]}
    assert everything == set(range(len(everything)))


def test_a_resumed_run_goes_on_as_it_would_have(tmp_path):
    whole = train(OverSampling(SHARE), 20)
    rule = OverSampling(SHARE)
    first = train(rule, 9)
    rule.save(tmp_path)
    train(rule, 2)  # after the checkpoint, and lost
    resumed = OverSampling(SHARE)
    resumed.restore(tmp_path)
    assert first + train(resumed, 11) == whole


def test_all_ranks_are_saved_and_dealt_out_to_another_number_of_ranks(tmp_path):
    states: list[list[object]] = [[], []]

    def share(rank):
        def collect(mine):
            states[rank] = mine
            return states[0] + states[1]

        return collect

    ranks = [OverSampling(SHARE, rank=rank, world=2, share=share(rank)) for rank in range(2)]
    trained = [group for rule in ranks for group, _ in train(rule, 7)]
    ranks[1].save(tmp_path)
    same = [OverSampling(SHARE, rank=rank, world=2) for rank in range(2)]
    alone = OverSampling(SHARE)
    for rule in (*same, alone):
        rule.restore(tmp_path)
    assert [t.state() for t in same] == [t.state() for t in ranks]
    waiting = {w["group"] for rule in ranks for w in rule.state()["waiting"]}
    assert {w["group"] for w in alone.state()["waiting"]} == waiting
    later = [group for group, _ in train(alone, 10)]
    assert waiting <= set(later)
    assert not set(later) & set(trained)
    assert no_hole(alone, [*trained, *later])


def no_hole(rule: OverSampling, trained: list[int]) -> bool:
    """Whether each new number was started once and none was left out."""
    state = rule.state()
    everything = sorted([*trained, *(w["group"] for w in state["waiting"]), *state["skipped"]])
    return everything == list(range(state["next"]))


def test_numbers_stay_whole_whatever_the_numbers_of_ranks(tmp_path):
    """Ranks come and go; in the end one of them has everything that was never started."""
    trained: list[int] = []
    for world in (3, 2, 5, 1):
        states: list[list[object]] = [[] for _ in range(world)]

        def share(rank, states=states):
            def collect(mine):
                states[rank] = mine
                return [state for some in states for state in some]

            return collect

        rules = [OverSampling(SHARE, rank=rank, world=world, share=share(rank)) for rank in range(world)]
        for rule in rules:
            if trained:
                rule.restore(tmp_path)
        for steps in (3, 4):
            trained += [group for rule in rules for group, _ in train(rule, steps)]
        rules[-1].save(tmp_path)
    assert len(trained) == len(set(trained))
    assert no_hole(rules[0], trained)


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"ranks": []}', '{"ranks": [{"next": 1}]}'])
def test_a_checkpoint_without_the_state_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "over_sampling.json").write_text(content)
    with pytest.raises(ModelError, match=r"over_sampling.json does not hold.*rollout.over_sample"):
        OverSampling(SHARE).restore(tmp_path)


def test_the_share_is_rounded_up():
    assert OverSampling(0.01).plan(4) == Plan((0, 1, 2, 3, 4), 4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("mode: async\npolicy: {type: vllm}\n", "mode 'async' with rollout.over_sample 0.25"),
        ("curriculum: {refill_rounds: 1}\n", "with a curriculum, expected one of the two"),
    ],
)
def test_what_it_does_not_go_with(tmp_path, more, message):
    path = tmp_path / "r.yaml"
    plain = "rollout: {over_sample: 0.25}\ndata: {sources: [{type: reasoning_gym, dataset: chain_sum}]}\n"
    path.write_text(plain)
    assert load_recipe(path).rollout.over_sample == 0.25
    path.write_text(plain + more)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)
