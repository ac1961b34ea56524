"""Prompts and budgets that leave no tokens to act with are refused or named before training."""

from __future__ import annotations

import pytest

from sandbox_rl.agents.base import EpisodeSettings
from sandbox_rl.errors import ConfigError
from sandbox_rl.preflight.context import LEAST_TOKENS, budget_warnings, check_context, least_tokens
from tests.unit.rig import CHAT

LEAST = max(least_tokens(CHAT), LEAST_TOKENS)


def test_a_prompt_that_leaves_no_tokens_for_a_command_and_a_submit_is_refused():
    with pytest.raises(
        ConfigError, match=r"'t': its prompt has 931 tokens, which leaves 93 of the 1024 .*place"
    ):
        check_context(CHAT, "t", prompt=931, context=1024)
    with pytest.raises(ConfigError, match="leaves 0 of the 1024"):
        check_context(CHAT, "t", prompt=2000, context=1024)
    with pytest.raises(ConfigError):
        check_context(CHAT, "t", prompt=1024 - LEAST + 1, context=1024)
    check_context(CHAT, "t", prompt=1024 - LEAST, context=1024)


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({"max_tokens": 5000}, "max_tokens: 5000, but behind the longest prompt"),
        ({"max_tokens": 20}, "no episode can earn anything"),
        ({"max_tokens": 1000, "turn_tokens": 3}, "turn_tokens: 3"),
        ({"max_tokens": 1000, "max_turns": 1}, "max_turns: 1"),
    ],
)
def test_budgets_that_cannot_work_are_named(budgets, said):
    (warning,) = budget_warnings(CHAT, EpisodeSettings(**budgets), prompt=500, context=2000)
    assert said in warning


def test_sensible_budgets_are_not_mentioned():
    assert list(budget_warnings(CHAT, EpisodeSettings(max_tokens=1000), prompt=500, context=2000)) == []
