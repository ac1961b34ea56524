"""A judge that dies while a run trains: the run stops with the cause and a checkpoint, on every process."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from sandbox_rl.training.checkpoints import last_complete, step_of
from tests.faults.served import served
from tests.smoke.dying_judge import dying_judge, judged_recipe
from tests.smoke.test_agreement import MODES, ends, one, two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A judge, and by mode a recipe that asks it."""
    directory = tmp_path_factory.mktemp("faults")
    with dying_judge() as judge:
        told = judged_recipe(judge, directory)
        for mode, blocks in MODES.items():
            blocks = told | blocks | {"grpo": told["grpo"] | blocks["grpo"]}
            (directory / f"{mode}.yaml").write_text(yaml.safe_dump(blocks))
        yield judge, {mode: directory / f"{mode}.yaml" for mode in MODES}


def lines(run):
    path = run / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # somebody writes
    return [json.loads(line) for line in whole.splitlines()]


def stopped(judged, begin, mode, *, refuses):
    """The run's directory, and what is said once the judge refuses so much, from the second update on."""
    judge, recipes = judged
    judge.refuses, run = 0.0, recipes[mode].parent / "runs" / f"{mode}-{refuses}"
    deadline = time.monotonic() + 560
    with served() as server:
        told = (f"name={run.name}", f"policy.base_urls=[{server}]")
        processes = begin("none", str(recipes[mode]), *told)
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
    return run, line


def test_a_judge_that_fails_often_stops_the_run_with_the_cause_and_a_checkpoint(judged):
    run, line = stopped(judged, one, "sync", refuses=0.875)
    assert "episodes could not be judged, more than reward.max_fault_share 0.5" in line
    assert "503" in line
    steps = [step for step in lines(run) if "loss" in step]
    assert any(0 < step["judged"] < step["episodes"] for step in steps)
    assert sum(step["judged"] < step["episodes"] for step in steps) < 16


@pytest.mark.parametrize(("begin", "mode"), [(two, "sync"), (one, "async")])
def test_a_judge_that_is_gone_stops_all_processes_with_one_message(judged, begin, mode):
    _, line = stopped(judged, begin, mode, refuses=1.0)
    assert "could not be judged, more than reward.max_fault_share 0.5" in line
    assert "503" in line
    assert "EngineFault" not in line
