"""A judge that dies while a run trains: the run stops with the cause and a checkpoint, on every process."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from sandbox_rl.training.checkpoints import last_complete, step_of
from tests.smoke.dying_judge import dying_judge, judged_recipe
from tests.smoke.test_agreement import ends, one, two


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    directory = tmp_path_factory.mktemp("faults")
    with dying_judge() as judge:
        path = directory / "r.yaml"
        path.write_text(yaml.safe_dump(judged_recipe(judge, directory)))
        yield judge, path


def lines(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stopped(judge, processes, run, *, refuses):
    """What is said once the judge refuses, from the second update on, so much; and the updates by then."""
    judge.refuses = 0.0
    deadline = time.monotonic() + 280
    while len(lines(run)) < 2:
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    judge.refuses = refuses
    codes, said = ends(processes)
    assert codes == [3] * len(processes)
    (line,) = said
    checkpoint = last_complete(run / "checkpoints")
    assert checkpoint is not None
    assert step_of(checkpoint) == lines(run)[-1]["step"]
    assert not (run / "export").exists()
    return line


@pytest.mark.slow
def test_a_judge_that_fails_often_stops_the_run_with_the_cause_and_a_checkpoint(judged):
    judge, recipe = judged
    run = recipe.parent / "runs" / "often"
    line = stopped(judge, one("none", str(recipe), "name=often"), run, refuses=0.875)
    assert "episodes could not be judged, more than reward.max_fault_share 0.5" in line
    assert "503" in line
    steps = [step for step in lines(run) if "loss" in step]
    assert any(0 < step["judged"] < step["episodes"] for step in steps)
    assert sum(step["judged"] < step["episodes"] for step in steps) < 16


@pytest.mark.slow
def test_a_judge_that_is_gone_stops_both_processes_with_one_message(judged):
    judge, recipe = judged
    run = recipe.parent / "runs" / "gone"
    line = stopped(judge, two("none", str(recipe), "name=gone"), run, refuses=1.0)
    assert "episodes could not be judged, more than reward.max_fault_share 0.5" in line
    assert "503" in line
