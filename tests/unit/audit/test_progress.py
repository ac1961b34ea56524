"""A run that cannot learn says so, in one line, and a healthy one says nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.progress import STEPS_EQUAL, ProgressAudit, findings

HEALTHY = {
    "loss": 0.1,
    "episodes": 8.0,
    "zero_variance_groups": 0.5,
    "reward/mean": 0.4,
    "turns": 2.5,
    "calls/execute_bash": 2.0,
    "stop/max_tokens": 0.1,
    "tokens/prompt": 300.0,
}


def logged(steps):
    alarms = Alarms()
    audit = ProgressAudit(alarms)
    for number, step in enumerate(steps):
        audit.on_log(None, SimpleNamespace(is_world_process_zero=True, global_step=number), None, dict(step))
    return alarms


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"zero_variance_groups": 1.0, "reward/mean": 0.0}, AlarmName.EQUAL_REWARDS, "easier tasks"),
        ({"zero_variance_groups": 1.0, "reward/mean": 1.0}, AlarmName.EQUAL_REWARDS, "harder tasks"),
        ({"calls/execute_bash": 0.0, "failures/no_call": 2.0}, AlarmName.NO_CALLS, "chat.call_format"),
        (
            {"turns": 1.0, "stop/max_tokens": 1.0, "tokens/prompt": 931.0},
            AlarmName.NO_CONTEXT_LEFT,
            "931 tokens",
        ),
    ],
)
def test_what_cannot_learn_is_named_with_its_cause(change, name, said):
    alarms = logged([HEALTHY | change] * STEPS_EQUAL)
    first = next(alarm for alarm in alarms.raised if alarm.name is name)
    assert said in first.detail
    assert "\n" not in first.detail
    assert {alarm.name for alarm in alarms.raised} == {name}
    one_healthy = [HEALTHY | change] * (STEPS_EQUAL - 1) + [HEALTHY]
    assert name not in findings(one_healthy)


def test_two_hundred_healthy_steps_raise_nothing():
    rng = random.Random(0)
    steps = [
        HEALTHY
        | {
            "zero_variance_groups": rng.choice([0.0, 0.5, 1.0]),
            "turns": rng.uniform(1, 4),
            "stop/max_tokens": rng.choice([0.0, 0.5]),
        }
        for _ in range(200)
    ]
    assert logged(steps).raised == ()


def test_steps_without_judged_episodes_and_evaluations_say_nothing_of_their_own():
    assert logged([{"loss": 0.0, "episodes": 8.0, "infra_fault_rate": 1.0}] * 20).raised == ()
    assert logged([{"eval_accuracy": 0.0}] * 20).raised == ()
