"""Numbers about rollouts, against cases small enough to count by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from sandbox_rl.metrics import group_metrics, pass_at_k, rollout_metrics
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    Observation,
    Reward,
    Rollout,
    StopReason,
    Task,
    ToolCall,
    ToolFailure,
    Trajectory,
    Turn,
)


def rollout(task="t", reward: float | None = 1.0, stop=StopReason.SUBMITTED, turns=(), domain="math"):
    return Rollout(
        Trajectory(task, (1, 2, 3), tuple(turns), stop, Answer(AnswerStatus.MISSING)),
        Reward(reward),
        Task(task, "?", "!", domain=domain),
    )


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 4), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_subsets_with_a_solution(n, c, k):
    solved = [True] * c + [False] * (n - c)
    subsets = list(combinations(solved, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_pass_at_k_needs_enough_samples():
    with pytest.raises(ValueError, match="pass@4 needs at least 4 samples"):
        pass_at_k(3, 1, 4)


def test_faults_count_as_faults_and_as_nothing_else():
    metrics = rollout_metrics(
        [
            rollout(reward=1.0),
            rollout(reward=0.0, stop=StopReason.MAX_TURNS, domain="qa"),
            rollout(reward=None, stop=StopReason.INFRA_FAULT),
        ]
    )
    assert metrics["infra_fault_rate"] == pytest.approx(1 / 3)
    assert metrics["reward/mean"] == 0.5
    assert (metrics["reward/math"], metrics["reward/qa"]) == (1.0, 0.0)
    assert metrics["stop/infra_fault"] == pytest.approx(1 / 3)


def test_only_faults_leave_only_the_fault_rate():
    metrics = rollout_metrics([rollout(reward=None, stop=StopReason.INFRA_FAULT)])
    assert metrics == {"episodes": 1.0, "judged": 0.0, "infra_fault_rate": 1.0}


def test_tools_are_counted_by_the_names_of_those_that_exist_ones_own_too():
    turn = Turn(
        Action((1, 2), (0.0, 0.0), "stop"),
        (ToolCall("execute_bash", {}), ToolCall("evil/metric name", {}), ToolCall("count_words", {})),
        (Observation("ok"), Observation("?", failure=ToolFailure.UNKNOWN_TOOL), Observation("3")),
        (9,) * 6,
    )
    last = Turn(Action((3, 4), (0.0, 0.0), "stop"))
    metrics = rollout_metrics([rollout(turns=(turn, last)), rollout()])
    assert metrics["calls/execute_bash"] == 0.5
    assert metrics["calls/unknown"] == 0.5
    assert metrics["calls/count_words"] == 0.5
    assert metrics["failures/unknown_tool"] == 0.5
    assert not any("evil" in name for name in metrics)
    assert metrics["tokens/observed_share"] == pytest.approx(0.6)


def test_groups():
    groups = [
        [rollout(reward=1.0), rollout(reward=0.0)],
        [rollout(reward=0.0), rollout(reward=0.0), rollout(reward=None)],
        [rollout(reward=None)],
    ]
    assert group_metrics(groups) == {"pass_at_group": 0.5, "zero_variance_groups": 0.5}
