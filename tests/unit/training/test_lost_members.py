"""What a group's advantages are worth where members are lost: exact expectations of a toy policy.

The policy chooses 1 with probability p = sigmoid(theta) and else 0; the reward is the choice. The gradient of
the expected reward is p (1 - p), and an estimate is the mean over what is trained of advantage times
d log p(choice) / d theta = choice - p.
"""

from __future__ import annotations

from itertools import product

import pytest

from sandbox_rl.training.groups import advantages

P = 0.3
SIZE = 3
TRUE = P * (1 - P)


def expected(kept, advantages_of=lambda rewards: advantages(rewards, "rloo")):
    """Of the estimate, over all groups and losses in which at least two members were judged.

    Args:
        kept: choice → probability that such a member is trained.
        advantages_of: rewards, None where a member is lost → advantages.
    """
    total = weight = 0.0
    for choices in product((0, 1), repeat=SIZE):
        for here in product((True, False), repeat=SIZE):
            chance = 1.0
            for choice, stays in zip(choices, here, strict=True):
                chance *= (P if choice else 1 - P) * (kept[choice] if stays else 1 - kept[choice])
            if sum(here) < 2 or not chance:
                continue
            rewards = [float(c) if stays else None for c, stays in zip(choices, here, strict=True)]
            found = advantages_of(rewards)
            terms = [a * (c - P) for a, c in zip(found, choices, strict=True) if a is not None]
            total += chance * sum(terms) / len(terms)
            weight += chance
    return total / weight


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_advantages_over_the_judged_members_are_unbiased_whatever_is_lost_by_accident(share):
    assert expected({0: share, 1: share}) == pytest.approx(TRUE, rel=1e-12)


def test_a_loss_that_goes_by_what_was_sampled_is_biased_which_is_why_nothing_is_dropped_as_stale():
    """Long answers last long and grow stale first; here the right ones are the long ones."""
    assert abs(expected({0: 1.0, 1: 0.5}) - TRUE) > 0.1 * TRUE


def test_a_fault_as_reward_zero_would_be_biased():
    def as_zero(rewards):
        return advantages([r or 0.0 for r in rewards], "rloo")

    assert abs(expected({0: 0.7, 1: 0.7}, as_zero) - TRUE) > 0.1 * TRUE
