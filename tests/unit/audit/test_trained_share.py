"""When the share of tokens that masks take is an alarm, and when it is bad luck among few episodes."""

from __future__ import annotations

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.rows import TokenClass
from sandbox_rl.audit.shares import HISTORY, TokenShares


def fallen_at(masked: list[float]) -> list[int]:
    """The steps, counted from 0, that sound the alarm; of each step this share of 100 tokens is masked."""
    alarms = Alarms()
    audit = TokenShares(alarms)
    for step, share in enumerate(masked):
        audit.add(TokenClass.INFRA_FAULT, round(100 * share))
        audit.add(TokenClass.TRAINED, 100 - round(100 * share))
        audit.take(step)
    return [alarm.step for alarm in alarms.raised if alarm.name is AlarmName.TRAINED_SHARE_FELL]


def test_one_step_of_many_faults_is_no_alarm() -> None:
    usual = [0.1] * HISTORY
    assert fallen_at([*usual, 0.6, 0.1, 0.7, 0.1]) == []


def test_a_share_that_stays_low_is_named_within_three_steps() -> None:
    usual = [0.1] * HISTORY
    assert fallen_at([*usual, 0.6, 0.6, 0.6])[0] <= HISTORY + 2
