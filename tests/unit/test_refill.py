"""Groups that teach nothing give way to others, in place and within the limit."""

from __future__ import annotations

import pytest

from sandbox_rl.errors import InfraFault
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.groups import NumberedGroup
from sandbox_rl.training.refill import refill
from tests.unit.test_curriculum import group

REWARDS = {"good": (0.0, 1.0), "bad": (0.0, 0.0)}
TASKS = [f"{kind}{i}" for kind in REWARDS for i in range(3)]


def rolled(names):
    return [group(name, *REWARDS[name.rstrip("0123456789")]) for name in names]


def numbered(names):
    return [NumberedGroup(10 + place, None, rollouts) for place, rollouts in enumerate(rolled(names))]


def run(drawn, rounds, *, tasks=TASKS):
    """The result and, per round, what was rolled out."""
    calls = []

    def roll_out(chosen, number):
        names = tuple(name for _, name in chosen)
        calls.append((names, number))
        return rolled(names)

    curriculum = Curriculum(dict.fromkeys(tasks, "x"), CurriculumSettings(refill_rounds=rounds), seed=0)
    return refill(numbered(drawn), curriculum, 0, roll_out), calls


def names(groups):
    return [g.task for g in groups]


def test_places_stay_and_what_was_left_out_is_kept():
    done, calls = run(["good0", "bad0", "good1"], 1, tasks=["good0", "bad0", "good1", "good2"])
    assert names(done.groups) == ["good0", "good2", "good1"]
    assert names(done.left_out) == ["bad0"]
    assert [(g.number, g.refill) for g in (*done.groups, *done.left_out)] == [
        (10, None),
        (11, 0),
        (12, None),
        (11, None),
    ]
    assert calls == [(("good2",), 0)]
    assert done.metrics == {
        "refill/extra_groups": 1,
        "refill/replaced": pytest.approx(1 / 3),
        "refill/still_equal": 0,
    }


def test_nothing_is_rolled_out_when_all_teach():
    done, calls = run(["good0", "good1"], 4)
    assert (names(done.groups), calls, done.left_out) == (["good0", "good1"], [], ())


def test_the_limit_holds_and_the_drawn_group_is_trained_on():
    bad = [f"bad{i}" for i in range(6)]
    done, calls = run(["bad0", "bad1"], 2, tasks=bad)
    assert names(done.groups) == ["bad0", "bad1"]
    assert [number for _, number in calls] == [0, 1]
    assert sorted(names(done.left_out)) == bad[2:]
    assert done.metrics["refill/still_equal"] == 1
    assert done.metrics["refill/extra_groups"] == 4


def test_it_ends_when_no_other_task_is_left():
    done, calls = run(["bad0", "bad1"], 9, tasks=["bad0", "bad1", "bad2"])
    assert [len(drawn) for drawn, _ in calls] == [1]
    assert names(done.left_out) == ["bad2"]


def test_a_fault_of_ours_leaves_what_was_drawn():
    def broken(chosen, number):
        raise InfraFault("the host is full")

    curriculum = Curriculum(dict.fromkeys(TASKS, "x"), CurriculumSettings(refill_rounds=2), seed=0)
    done = refill(numbered(["bad0", "good0"]), curriculum, 0, broken)
    assert names(done.groups) == ["bad0", "good0"]
    assert done.metrics["refill/extra_groups"] == 0
    assert {number: [place for place, _ in chosen] for number, chosen in done.failed.items()} == {0: [0]}


def test_a_rank_that_has_nothing_to_replace_asks_in_every_round_all_the_same():
    """Ranks share what they replace once per round: one that left earlier would leave the others waiting."""
    asked = []

    def share(mine):
        asked.append(mine[0])
        return [mine[0], (["bad9"], ["bad9"])]

    tasks = [*TASKS, "bad9"]
    curriculum = Curriculum(
        dict.fromkeys(tasks, "x"), CurriculumSettings(refill_rounds=2), seed=0, world=2, share=share
    )
    done = refill(numbered(["good0"]), curriculum, 0, lambda *_: pytest.fail("nothing to roll out"))
    assert names(done.groups) == ["good0"]
    assert asked == [([], ["good0"])] * 2
