"""What is drawn, against counts by hand; equal on every rank and after a resume."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from sandbox_rl.errors import ConfigError, ModelError
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.training.curriculum import Curriculum, outcome_of
from sandbox_rl.training.groups import teaches
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory

DOMAINS = {f"m{i}": "math" for i in range(6)} | {f"q{i}": "qa" for i in range(4)}


def make(domains=None, *, seed=1, rank=0, world=1, share=list, **settings):
    return Curriculum(
        domains or DOMAINS, CurriculumSettings(**settings), seed=seed, rank=rank, world=world, share=share
    )


def group(task_id, *rewards):
    trajectory = Trajectory(task_id, (), (), StopReason.SUBMITTED, Answer(AnswerStatus.OK))
    return [Rollout(trajectory, Reward(reward), Task(task_id, "?", "42")) for reward in rewards]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ((0.0, 0.0), False),
        ((1.0, 1.0), False),
        ((1.0, 0.0), True),
        ((None, None), False),
        ((1.0, None), False),
        ((0.5, None, 0.0), True),
    ],
)
def test_a_group_teaches_when_its_rewards_differ(rewards, expected):
    assert teaches(group("m0", *rewards)) is expected


def test_a_group_s_outcome_counts_what_was_judged_and_clips():
    assert outcome_of(group("m0", 1.0, None, 0.25, -2.0, 7.0)) == ("m0", 2.25, 4)


def test_a_running_solve_rate_by_hand():
    curriculum = make(sampling="difficulty", memory=0.5)
    assert curriculum.solve_rate("m0") == 1 / 2
    curriculum.record([("m0", 3.0, 8)])
    assert curriculum.solve_rate("m0") == (3 + 1) / (8 + 2)
    curriculum.record([("m0", 8.0, 8)])
    assert curriculum.solve_rate("m0") == (0.5 * 3 + 8 + 1) / (0.5 * 8 + 8 + 2)
    curriculum.record([("m0", 0.0, 0)])  # nobody could judge: nothing is known
    assert curriculum.solve_rate("m0") == (0.5 * 3 + 8 + 1) / (0.5 * 8 + 8 + 2)


def test_without_settings_the_trainer_s_order_stays():
    assert make().draw(["q1", "m0", "q1"], 3) == ["q1", "m0", "q1"]
    assert not CurriculumSettings().active
    for changed in ({"refill_rounds": 1}, {"sampling": "difficulty"}, {"domain_weights": {"math": 1.0}}):
        assert CurriculumSettings(**changed).active


def test_shares_of_domains_are_exact_within_one_place():
    curriculum = make(domain_weights={"math": 3, "qa": 1})
    for step in range(20):
        assert Counter(DOMAINS[name] for name in curriculum.draw(["m0"] * 4, step)) == {"math": 3, "qa": 1}
    uneven = make(domain_weights={"math": 1, "qa": 2})  # of 4 places 1⅓ and 2⅔
    counts = [Counter(DOMAINS[n] for n in uneven.draw(["m0"] * 4, step))["math"] for step in range(600)]
    assert set(counts) == {1, 2}
    expected, spread = 600 * 4 / 3, math.sqrt(600 * (1 / 3) * (2 / 3))
    assert abs(sum(counts) - expected) < 4 * spread


def test_a_weight_of_zero_leaves_a_domain_out():
    curriculum = make(domain_weights={"math": 1, "qa": 0})
    assert {DOMAINS[name] for step in range(10) for name in curriculum.draw(["q0"] * 4, step)} == {"math"}


def test_uniform_draws_use_every_task_before_any_a_second_time():
    curriculum = make(domain_weights={"math": 1, "qa": 0})
    drawn = []
    for step in range(6):
        names = curriculum.draw(["m0"] * 2, step)
        curriculum.record([(name, 0.0, 4) for name in names])
        drawn += names
    assert Counter(drawn) == {f"m{i}": 2 for i in range(6)}


def test_difficulty_draws_follow_the_weights():
    """One task of p = 1/2 (weight 0.1 + 1) against one of p = 41/42 (0.1 + 4·41/42²), one place."""
    curriculum = make({"half": "math", "easy": "math"}, sampling="difficulty", floor=0.1, memory=1.0)
    curriculum.record([("half", 20.0, 40), ("easy", 40.0, 40)])
    easy = 0.1 + 4 * (41 / 42) * (1 / 42)
    share = 1.1 / (1.1 + easy)
    found = sum(curriculum.draw(["easy"], step) == ["half"] for step in range(2000))
    assert abs(found - 2000 * share) < 4 * math.sqrt(2000 * share * (1 - share))


def test_more_places_than_tasks_take_tasks_again():
    assert sorted(make({"a": "x", "b": "x"}, sampling="difficulty").draw(["a"] * 4, 0)) == [
        "a",
        "a",
        "b",
        "b",
    ]


def test_ranks_divide_one_draw():
    whole = make(sampling="difficulty").draw(["m0"] * 6, 5)
    parts = [make(sampling="difficulty", rank=r, world=3).draw(["m0"] * 2, 5) for r in range(3)]
    assert [name for part in parts for name in part] == whole
    assert len(set(whole)) == 6


def test_all_ranks_count_what_any_of_them_saw():
    seen = [("m0", 8.0, 8), ("q0", 0.0, 8)]
    first, second = (make(sampling="difficulty", rank=r, world=2, share=lambda _: seen) for r in range(2))
    first.record(seen[:1])
    second.record(seen[1:])
    assert first.solve_rate("q0") == second.solve_rate("q0") == 1 / 10
    assert first.draw(["m0"] * 3, 1) + second.draw(["m0"] * 3, 1) == make_with(seen).draw(["m0"] * 6, 1)


def make_with(outcomes):
    curriculum = make(sampling="difficulty")
    curriculum.record(outcomes)
    return curriculum


def test_another_seed_or_step_draws_otherwise():
    base = make(sampling="difficulty").draw(["m0"] * 6, 0)
    assert make(sampling="difficulty", seed=2).draw(["m0"] * 6, 0) != base
    assert make(sampling="difficulty").draw(["m0"] * 6, 1) != base


def run_steps(curriculum, steps):
    drawn = []
    for step in steps:
        names = curriculum.draw(["m0"] * 3, step)
        curriculum.record([(name, 4.0 if name in ("m0", "m3", "q1") else 8.0, 8) for name in names])
        drawn.append(names)
    return drawn


@pytest.mark.parametrize("sampling", ["uniform", "difficulty"])
def test_a_resumed_run_draws_as_the_uninterrupted_one(tmp_path, sampling):
    settings = {"sampling": sampling, "floor": 0.01, "domain_weights": {"math": 2, "qa": 1}}
    control = run_steps(make(**settings), range(12))
    first = make(**settings)
    run_steps(first, range(7))
    first.save(tmp_path)
    second = make(**settings)
    second.restore(tmp_path)
    assert run_steps(second, range(7, 12)) == control[7:]
    forgetful = run_steps(make(**settings), range(7, 12))
    assert forgetful != control[7:], "the saved counts must matter, or this test shows nothing"


def test_counts_of_tasks_that_are_gone_are_left_out(tmp_path):
    old = make()
    old.record([("m0", 8.0, 8), ("q3", 8.0, 8)])
    old.save(tmp_path)
    new = make({"m0": "math", "new": "math"})
    new.restore(tmp_path)
    assert (new.solve_rate("m0"), new.solve_rate("new")) == (0.9, 0.5)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"tasks": {"m0": 3}}'])
def test_a_missing_or_damaged_file_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "curriculum.json").write_text(text)
    with pytest.raises(ModelError, match=r"--resume: .*curriculum\.json does not hold"):
        make().restore(tmp_path)


def test_the_file_holds_only_what_was_seen(tmp_path):
    curriculum = make()
    curriculum.record([("m3", 2.0, 4)])
    curriculum.save(tmp_path)
    assert json.loads((tmp_path / "curriculum.json").read_text())["tasks"] == {"m3": [1, 2.0, 4.0]}


def test_substitutes_are_other_tasks_until_none_is_left():
    curriculum = make(refill_rounds=3)
    used = set(DOMAINS) - {"m1", "q2"}
    found = curriculum.substitutes(["m0", "q0", "m2"], used, generation=0, refill=0)
    assert sorted(found[:2]) == ["m1", "q2"]
    assert found[2] is None


def test_substitutes_keep_weighted_domains():
    curriculum = make(refill_rounds=3, domain_weights={"math": 1, "qa": 1})
    for step in range(10):
        found = curriculum.substitutes(["q0", "m0", "q1"], {"q0", "m0", "q1"}, generation=step, refill=0)
        assert [DOMAINS[name] for name in found] == ["qa", "math", "qa"]


def test_substitutes_are_the_same_whatever_the_number_of_ranks():
    settings = {"refill_rounds": 1, "sampling": "difficulty"}
    replaced, used = ["m0", "q0", "m2"], ["m0", "q0", "m1", "m2"]
    whole = make(**settings).substitutes(replaced, used, generation=7, refill=1)
    everyone = [(["m0"], ["m0", "q0"]), (["q0", "m2"], ["m1", "m2"])]
    parts = [
        make(rank=rank, world=2, share=lambda _: everyone, **settings).substitutes(
            *everyone[rank], generation=7, refill=1
        )
        for rank in range(2)
    ]
    assert parts[0] + parts[1] == whole
    assert not set(whole) & set(used)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"math": 1, "qa": 1, "maths": 1}, "no training task is of 'maths', expected one of math, qa"),
        ({"math": 1}, "the domain 'qa' has no weight"),
        ({"math": 0, "qa": 0}, "all are 0"),
    ],
)
def test_weights_that_do_not_fit_the_data(weights, message):
    with pytest.raises(ConfigError, match=message):
        make(domain_weights=weights)
