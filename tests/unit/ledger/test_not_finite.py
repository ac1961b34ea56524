"""An update that was left out has used nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sandbox_rl.ledger import Group, Ledger, Sample, SampleEnd, read_ledger
from sandbox_rl.training.generations import GenerationLedger, Generations
from sandbox_rl.training.groups import NumberedGroup
from tests.smoke.support import make_rollout


def test_only_what_would_have_been_used_has_another_end():
    samples = [Sample("a-0", SampleEnd.USED, 1.0), Sample("a-1", SampleEnd.NOT_JUDGED, None)]
    group = Group(0, "a", None, tuple(samples)).not_finite()
    assert [s.end for s in group.samples] == [SampleEnd.NOT_FINITE, SampleEnd.NOT_JUDGED]
    assert "left out" in SampleEnd.NOT_FINITE.why


@pytest.mark.parametrize(
    ("taken", "end"), [([True], "used"), ([False], "not_finite"), ([False, True], "used")], ids=str
)
def test_of_several_updates_from_a_generation_one_that_was_taken_has_used_it(tmp_path, taken, end):
    path = tmp_path / "ledger.jsonl"
    follower = GenerationLedger(Generations(every=len(taken), accumulation=1, groups=1), Ledger(path))
    rollouts = [make_rollout("a", float(i), seed=i) for i in range(2)]
    follower.rolled_out(0, [NumberedGroup(0, None, rollouts)], [])
    follower.weighed([1.0, -1.0], [True, True])
    for step, took in enumerate(taken, start=1):
        follower.update(left_out=not took)
        follower.on_step_end(None, SimpleNamespace(global_step=step), None)
    written = [s.end for update in read_ledger(path) for g in update.groups for s in g.samples]
    assert written == [end, end]
