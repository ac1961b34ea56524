"""Names of the field: what they are computed from, and that docs/metrics.md says so."""

from __future__ import annotations

import math

import pytest

from sandbox_rl.field_metrics import Spent, of_evaluation, of_update
from tests.documented_metrics import EVALUATION, UPDATE

SECONDS = {
    "seconds/generation": 6.0,
    "seconds/execution": 3.0,
    "seconds/scoring": 1.0,
    "seconds/waiting": 2.0,
}
SPENT = Spent(step_s=30.0, rollout_s=24.0, publish_s=1.0, tokens=6000.0)


def test_the_parts_of_a_step_add_up():
    named = of_update(SECONDS, SPENT)
    assert named["time/update"] == 5.0
    parts = [named[f"time/{part}"] for part in ("generate", "execute", "score", "wait", "publish", "update")]
    assert math.isclose(sum(parts), named["time/step"])
    assert (named["time/generate"], named["time/score"]) == (12.0, 2.0)
    assert named["perf/throughput"] == 200.0


def test_without_episodes_all_is_waiting_and_nothing_is_divided_by_zero():
    assert of_update({}, SPENT)["time/wait"] == 24.0
    assert "perf/throughput" not in of_update({}, Spent(0.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("found", "value"), [({"mismatch/kl": 0.1, "kl": 9.0}, 0.1), ({"kl": 0.2}, 0.2), ({}, None)]
)
def test_the_mismatch_is_the_sampler_s(found, value):
    assert of_update(found, SPENT).get("mismatch_kl") == value


def test_an_average_over_samples_has_a_k_only_where_all_tasks_have_it():
    assert of_evaluation(0.5, 4, {1: 0.5, 4: 0.9}) == {"avg@4": 0.5, "pass@1": 0.5, "pass@4": 0.9}
    assert of_evaluation(0.5, None, {1: 0.5}) == {"pass@1": 0.5}


def test_every_documented_name_but_the_ages_comes_of_an_update():
    named = of_update(SECONDS | {"mismatch/kl": 0.1}, SPENT)
    assert set(named) == {name for name in UPDATE if not name.startswith("off_policy/")}


def test_the_documented_names_are_those_of_an_evaluation():
    assert tuple(name.replace("4", "K") for name in of_evaluation(0.5, 4, {4: 0.9})) == EVALUATION
