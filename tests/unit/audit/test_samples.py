"""What only many steps show: masks that take more than they used to."""

from __future__ import annotations

import pytest

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.rows import TokenClass
from sandbox_rl.audit.shares import HISTORY, QUIET_STEPS, TokenShares


def alarms_of(masked_shares, reason=TokenClass.NOT_JUDGED):
    """The alarms of steps of 100 sampled tokens, of which these shares are masked and the others trained."""
    alarms = Alarms()
    audit = TokenShares(alarms)
    for step, share in enumerate(masked_shares):
        audit.add(TokenClass.TRAINED, 100 - round(100 * share))
        audit.add(reason, round(100 * share))
        audit.take(step)
    return alarms.raised


@pytest.mark.parametrize("usual", [0.0, 0.2])
def test_masks_that_leave_less_than_half_of_what_they_left_are_named(usual):
    (alarm,) = alarms_of([usual] * HISTORY + [0.5 + usual / 2 + 0.05] * QUIET_STEPS)
    assert alarm.name is AlarmName.TRAINED_SHARE_FELL
    assert TokenClass.NOT_JUDGED.value in alarm.detail


@pytest.mark.parametrize("last", [0.0, 0.2, 0.45])
def test_masks_that_take_a_little_more_are_no_alarm(last):
    assert not alarms_of([0.1] * HISTORY + [last] * QUIET_STEPS)


def test_before_the_usual_share_is_known_nothing_is_reported_of_it():
    assert not alarms_of([0.0] * (HISTORY - 1) + [0.9])


def test_a_step_that_is_masked_whole_is_named_at_once():
    (alarm,) = alarms_of([0.0, 1.0], TokenClass.OVERLONG)
    assert alarm.name is AlarmName.NOTHING_TRAINED
    assert "100% of those sampled are overlong" in alarm.detail
