"""A run ends with the cause once too many of its episodes could not be judged."""

from __future__ import annotations

import pytest

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.faults import ALARM_WINDOW, FEWEST, WINDOW, FaultAudit, FaultWatch
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory


def ended(reward: Reward) -> Rollout:
    trajectory = Trajectory("t", (1,), (), StopReason.SUBMITTED, Answer(AnswerStatus.OK, "1"))
    return Rollout(trajectory, reward, Task("t", "?", "1"))


def failed(why: str) -> Rollout:
    return ended(Reward(None, detail=why))


def judged() -> Rollout:
    return ended(Reward(0.0))


def masked() -> Rollout:
    return ended(Reward(None, masked=True))


def watch(*rollouts: Rollout, most: float = 0.5) -> FaultWatch:
    faults = FaultWatch(most)
    for one in rollouts:
        faults.add(one)
    return faults


def test_the_commonest_cause_is_named() -> None:
    causes = [failed(f"scorer my:score raised on task 't{n}'") for n in range(FEWEST)]
    cause = watch(judged(), failed("disk full"), *causes).cause()
    assert "reward.max_fault_share 0.5" in cause
    assert "scorer my:score raised on task" in cause


def test_few_episodes_and_a_tolerated_share_say_nothing() -> None:
    assert watch(*[failed("down")] * (FEWEST - 1)).cause() == ""
    assert watch(*[failed("down"), judged()] * WINDOW).cause() == ""


@pytest.mark.parametrize("most", [0.1, 0.5, 0.9])
def test_the_share_is_the_settings(most: float) -> None:
    few = int(most * WINDOW)
    assert watch(*[judged()] * (WINDOW - few), *[failed("down")] * few, most=most).cause() == ""
    assert watch(*[judged()] * (WINDOW - few - 1), *[failed("down")] * (few + 1), most=most).cause() != ""


def test_old_faults_are_forgotten_but_a_verdict_stands() -> None:
    faults = watch(*[failed("down")] * WINDOW, *[judged()] * WINDOW)
    assert faults.cause() == ""
    for _ in range(WINDOW):
        faults.add(failed("down"))
    cause = faults.cause()
    assert cause
    for _ in range(WINDOW):
        faults.add(judged())
    assert faults.cause() == cause


def test_what_the_recipe_masks_is_no_fault() -> None:
    assert watch(*[masked()] * WINDOW).cause() == ""


def sounded(*rollouts: Rollout | str | None) -> list[str]:
    alarms = Alarms()
    audit = FaultAudit(alarms)
    for one in rollouts:
        audit.add(one)
    audit.look(7)
    assert all((a.step, a.name) == (7, AlarmName.INFRA_FAULTS) for a in alarms.raised)
    return [alarm.detail for alarm in alarms.raised]


def test_more_faults_than_happen_are_an_alarm_with_the_commonest_cause() -> None:
    well = [judged()] * (ALARM_WINDOW - 3)
    assert sounded(judged(), *well, *[failed("down")] * 2) == []  # 4 %
    (said,) = sounded(*well, failed("disk"), failed("engine 1 down"), failed("engine 2 down"))
    assert said == (
        "3 of the last 50 episodes could not be judged, more than 5%; the commonest cause (2): engine 1 down"
    )


def test_the_alarm_waits_for_enough_episodes_and_ends_with_the_faults() -> None:
    assert sounded(*[failed("down")] * (ALARM_WINDOW - 1)) == []
    assert sounded(*[failed("down")] * ALARM_WINDOW, *[judged(), masked()] * ALARM_WINDOW) == []
