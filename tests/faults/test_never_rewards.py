"""A fault of ours is never a reward: one rule (`rollout.judging`), and every path that a reward takes."""

from __future__ import annotations

import pytest

from sandbox_rl.errors import EngineFault, InfraFault, SandboxFault
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.metrics import group_metrics, rollout_metrics
from sandbox_rl.observer import EachRollout
from sandbox_rl.rollout.judging import judge
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.training.estimator import to_rows
from sandbox_rl.training.groups import end_of, group_rows, teaches
from sandbox_rl.training.samples import finished_group
from sandbox_rl.types import Answer, AnswerStatus, Reward, Rollout, StopReason, Task
from tests.smoke.support import EOS, make_rollout
from tests.unit.rig import SUBMIT, ExactScoring, bash, make_engine, request, say, write

RIGHT = [(bash("ls"),), (write("42"),), (SUBMIT,)]
CHOICES = (None, "zero", "score", "mask")
"""What training (None), evaluation and suites ("score") and recipes make of budgets."""


class BreakingBackend(RecordingBackend):
    def __init__(self, where: str, error: Exception) -> None:
        super().__init__(self.broken if where == "a command" else None)
        self.where, self.error = where, error

    def broken(self, command: str):
        raise self.error

    def sandbox(self, files=None, *, timeout=60.0):
        if self.where == "making the sandbox":
            raise self.error
        return super().sandbox(files, timeout=timeout)


class BreakingScoring(ExactScoring):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def score(self, task, answer):
        raise self.error


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("making the sandbox", SandboxFault("s")),
        ("a command", OSError(5, "io")),
        ("a turn", EngineFault("e")),
        ("the answer", SandboxFault("s")),
        ("scoring", InfraFault("r")),
        ("scoring", KeyError("a defect")),
    ],
)
async def test_whatever_breaks_in_an_episode_it_has_no_reward(error, where, monkeypatch):
    """With an answer in place that would earn 1, for training, evaluation, refill and suites alike."""

    def script(episode_id, turn, ids):
        if where == "a turn" and turn == 2:
            raise error
        return say(*RIGHT[turn])

    backend = BreakingBackend(where, error)
    scoring = BreakingScoring(error) if where == "scoring" else ExactScoring()
    engine = make_engine(script, backend=backend, scoring=scoring, rollout={"retries": 0})
    if where == "the answer":
        from sandbox_rl.fakes import RecordingSandbox

        async def unread(self, path="", *, max_bytes=0):
            raise error

        monkeypatch.setattr(RecordingSandbox, "read_answer", unread)
    rollouts = []
    seen = EachRollout(lambda _, rollout: rollouts.append(rollout))
    async with engine:
        for overlong in CHOICES:
            with pytest.raises(InfraFault):  # of all episodes not one could be judged
                await engine.run([request("broken")], overlong=overlong, observer=seen)
    assert len(rollouts) == len(CHOICES)
    for rollout in rollouts:
        assert rollout.trajectory.stop is StopReason.INFRA_FAULT
        assert (rollout.reward.value, rollout.reward.masked) == (None, False)
        assert rollout.trajectory.fault


@pytest.mark.parametrize("overlong", CHOICES)
async def test_scored_again_a_fault_has_no_reward_by_any_rule(overlong):
    task, right = Task("t", "?", "42"), Answer(AnswerStatus.OK, "42")
    for settings in (RolloutSettings(), RolloutSettings(overlong="score", timed_out="score")):
        reward = await judge(
            ExactScoring(),
            task,
            StopReason.INFRA_FAULT,
            right,
            settings=settings,
            overlong=overlong,
            fault="gone",
        )
        assert (reward.value, reward.masked, reward.detail) == (None, False, "gone")


def test_nobody_can_make_a_rollout_of_a_fault_with_a_reward():
    lost = make_rollout("a", None, seed=0).trajectory
    assert lost.stop is StopReason.INFRA_FAULT
    for value in (0.0, 1.0):
        with pytest.raises(ValueError, match="lost to a fault"):
            Rollout(lost, Reward(value), Task("a", "?", "42"))


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_a_fault_in_a_group_changes_no_other_advantage_and_is_trained_on_nowhere(kind):
    judged = [make_rollout("a", reward, seed=n) for n, reward in enumerate((1.0, 0.0, 0.0))]
    lost = make_rollout("a", None, seed=9)
    group = [judged[0], lost, *judged[1:]]
    without = [row.advantage for row in group_rows(judged, kind)]
    found = [row.advantage for row in group_rows(group, kind)]
    assert (found[1], [found[0], *found[2:]]) == (None, without)
    rows = to_rows([group], estimator="paper", eos_id=EOS)  # synchronous, refilled groups as well
    assert (rows["outcome"][1], rows["signal"][1], set(rows["env_mask"][1])) == (None, None, {0})
    finished = finished_group(group, number=0, kind=kind)  # asynchronous
    assert [sample.index for sample in finished.samples] == [0, 2, 3]
    assert [sample.advantage for sample in finished.samples] == pytest.approx(without)
    assert end_of(lost, equal=False) is end_of(lost, equal=True) is SampleEnd.NOT_JUDGED


def test_a_fault_makes_no_group_teach_and_moves_no_mean():
    right, wrong, lost = (make_rollout("a", reward, seed=n) for n, reward in enumerate((1.0, 0.0, None)))
    assert not teaches([right, lost])
    assert not teaches([wrong, lost])
    metrics = rollout_metrics([right, lost]) | group_metrics([[right, lost]])
    assert (metrics["reward/mean"], metrics["judged"], metrics["infra_fault_rate"]) == (1.0, 1.0, 0.5)
