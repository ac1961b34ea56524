"""A run that trained on nothing is told from one that had no luck for a few steps."""

from __future__ import annotations

import pytest

from sandbox_rl.audit.alarms import Alarms
from sandbox_rl.audit.rows import TokenClass
from sandbox_rl.audit.shares import TokenShares


def after(steps: int, **tokens: int) -> str | None:
    audit = TokenShares(Alarms())
    for step in range(steps):
        for name, count in tokens.items():
            audit.add(TokenClass(name), count)
        audit.take(step)
    return audit.nothing_trained()


@pytest.mark.parametrize("reason", ["overlong", "truncated", "infra_fault", "not_judged"])
def test_masks_are_no_accident(reason):
    assert after(1, **{reason: 50}) == f"100% of 50 sampled tokens are {reason}"


def test_equal_rewards_are_one_after_some_steps():
    assert after(9, zero_advantage=10) is None
    assert after(10, zero_advantage=10) == "100% of 100 sampled tokens are zero_advantage"


def test_one_trained_token_is_training():
    assert after(20, zero_advantage=99, trained=1) is None
