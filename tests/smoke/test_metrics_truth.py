"""What trackers show is what happened: rewards as scored, evaluation in a group of its own."""

from __future__ import annotations

import json
import statistics
from types import SimpleNamespace

import pytest
from transformers.integrations.integration_utils import rewrite_logs

from sandbox_rl.training.callbacks import LogMetrics, for_trackers
from sandbox_rl.training.estimator import estimator_fields
from sandbox_rl.training.loop import LoopThread
from tests.smoke.test_update import batch, our_trainer


@pytest.mark.parametrize("estimator", ["paper", "trl"])
@pytest.mark.parametrize(
    ("rewards", "equal_groups"),
    [
        ((1.0,) * 4 + (1.0, 0.0, 1.0, 1.0), 0.5),
        ((1.0, 0.0, 0.5, 1.0, 0.0, None, 0.0, 0.0), 0.5),
        ((1.0,) * 8, 1.0),
    ],
)
def test_logged_rewards_are_those_that_were_scored(tmp_path, rewards, equal_groups, estimator):
    with LoopThread() as loop:
        trainer = our_trainer(
            tmp_path, batch(rewards), loop, estimator=estimator, **dict(estimator_fields(estimator))
        )
        trainer.train()
    logged = trainer.state.log_history[0]
    judged = [r for r in rewards if r is not None]
    for name in ("reward", "rewards/outcome_reward/mean", "reward/mean"):
        assert logged[name] == pytest.approx(statistics.fmean(judged)), name
    for name in ("reward_std", "rewards/outcome_reward/std"):
        assert logged[name] == pytest.approx(statistics.stdev(judged), abs=1e-6), name
    assert logged["frac_reward_zero_std"] == pytest.approx(equal_groups)
    table = list(trainer._logs["rewards"]["outcome_reward"])
    assert [None if value != value else value for value in table] == list(rewards)


def test_evaluation_is_a_group_of_its_own_in_every_tracker(tmp_path):
    logs = {"eval/accuracy": 0.5, "eval/accuracy/sums": 0.25, "suite/offline/accuracy": 0.75, "reward": 0.1}
    sent = for_trackers(logs)
    shown = rewrite_logs(sent)  # what TensorBoard, Weights & Biases and others of transformers' make of it
    assert shown == {
        "eval/accuracy": 0.5,
        "eval/accuracy/sums": 0.25,
        "eval/suite/offline/accuracy": 0.75,
        "train/reward": 0.1,
    }
    state = SimpleNamespace(is_world_process_zero=True, global_step=3)
    LogMetrics(tmp_path / "metrics.jsonl").on_log(None, state, None, sent)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {name: line[name] for name in logs} == logs
