"""A policy that is sure samples the same tokens several times: the audit still distinguishes episodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import pytest
import torch

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.samples import SampleAudit
from sandbox_rl.audit.shares import TokenShares
from sandbox_rl.types import Action, Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory, Turn

TOKENS = (5, 6, 7)
REWARDS = (None, 0.0, 0.4, 1.0)


def episode(number: int, reward: float | None) -> Rollout:
    action = Action(token_ids=TOKENS, logprobs=(-0.1,) * len(TOKENS), finish_reason="stop")
    answer = Answer(AnswerStatus.OK, "1")
    turns = (Turn(action, ()),)
    trajectory = Trajectory("t", (1, 2), turns, StopReason.SUBMITTED, answer, episode_id=f"e{number}")
    return Rollout(trajectory, Reward(reward), Task("t", "?", "1"))


def centred(rewards: Sequence[float | None]) -> list[float | None]:
    judged = [reward for reward in rewards if reward is not None]
    mean = sum(judged) / len(judged) if judged else 0.0
    return [None if reward is None else reward - mean for reward in rewards]


def alarms_of(
    group: Sequence[float | None], rows: Sequence[tuple[bool, float]], *, known: bool
) -> list[AlarmName]:
    """Of a group of these rewards whose rows in the loss are trained or not, with these advantages."""
    alarms = Alarms()
    audit = SampleAudit(alarms, TokenShares(alarms), advantages=centred if known else None)
    audit.rolled_out([[episode(number, reward) for number, reward in enumerate(group)]], 0)
    count = len(rows)
    audit.in_loss(
        {
            "prompt_ids": torch.tensor([[1, 2]] * count),
            "prompt_mask": torch.ones(count, 2, dtype=torch.long),
            "completion_ids": torch.tensor([TOKENS] * count),
            "completion_mask": torch.ones(count, len(TOKENS), dtype=torch.long),
            "tool_mask": torch.tensor([[int(trained)] * len(TOKENS) for trained, _ in rows]),
            "advantages": torch.tensor([advantage for _, advantage in rows]),
        },
        0,
    )
    return [alarm.name for alarm in alarms.raised]


def rows_of(group: Sequence[float | None]) -> list[tuple[bool, float]]:
    return [(due is not None, due or 0.0) for due in centred(group)]


@pytest.mark.parametrize("known", [True, False])
def test_whatever_their_rewards_and_their_order_healthy_rows_raise_no_alarm(known: bool) -> None:
    for group in product(REWARDS, repeat=3):
        for rows in permutations(rows_of(group)):
            assert alarms_of(group, rows, known=known) == [], (group, rows)


@pytest.mark.parametrize("known", [True, False])
def test_an_episode_that_was_not_judged_and_is_trained_is_still_found(known: bool) -> None:
    for group in product(REWARDS, repeat=3):
        if None in group:
            rows = [(True, advantage) for _, advantage in rows_of(group)]
            assert AlarmName.MASK_DIFFERS in alarms_of(group, rows, known=known), group


def test_an_advantage_of_the_wrong_sign_is_still_found() -> None:
    for group in product((0.0, 1.0), repeat=3):
        rows = rows_of(group)
        if len(set(group)) > 1:
            turned = [(trained, -advantage) for trained, advantage in rows]
            assert AlarmName.ADVANTAGE_DIFFERS in alarms_of(group, turned, known=True), group
