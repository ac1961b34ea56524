"""Files that other tools open hold what was sampled, exactly, and every episode that stands."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from sandbox_rl.errors import ConfigError
from sandbox_rl.journal import Journal
from sandbox_rl.view import Format
from sandbox_rl.view.formats import export_episodes
from sandbox_rl.view.opened import open_run
from tests.unit.view.run_on_disk import make_run

ID = "train-000003-0001"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path):
    def change(journal: Journal) -> None:
        journal.replaced(["nobody"])

    with open_run(make_run(tmp_path / "run", change=change), whole=True) as opened:
        yield opened


def test_messages_are_those_of_a_chat_endpoint(run, tmp_path):
    assert export_episodes(run, Format.JSONL, tmp_path / "out.jsonl") == 25
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["id"] == ID)
    assert [message["role"] for message in line["messages"]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]
    (call,) = line["messages"][1]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"command": "python3 -c 'print(301)'"}
    assert line["messages"][2] == {"role": "tool", "tool_call_id": call["id"], "content": "301\n"}
    assert (line["answer"], line["end"], line["stop"]) == ("301", "used", "submitted")
    (odd,) = (line for line in lines if line["task_id"] == "task-odd")
    assert odd["messages"][-1] == {"role": "user", "content": "no JSON"}
    with pytest.raises(ConfigError, match="exists already"):
        export_episodes(run, Format.JSONL, tmp_path / "out.jsonl")


def test_trajectories_have_the_ids_and_log_probs_that_were_sampled(run, tmp_path):
    assert export_episodes(run, Format.HARBOR, tmp_path / "job") == 25
    trajectory = json.loads((tmp_path / "job" / ID / "agent" / "trajectory.json").read_text())
    assert trajectory["schema_version"] == "ATIF-v1.4"
    assert [step["step_id"] for step in trajectory["steps"]] == [1, 2, 3]
    assert [step["source"] for step in trajectory["steps"]] == ["user", "agent", "agent"]
    first, second = (step["metrics"] for step in trajectory["steps"][1:])
    assert (first["prompt_token_ids"], first["completion_token_ids"]) == ([1, 9, 0], [3, 4, 5, 2])
    assert first["logprobs"] == [-0.5, -0.25, -1.0, pytest.approx(-0.01)]
    assert second["prompt_token_ids"] == [1, 9, 0, 3, 4, 5, 2, 0, 6, 7]
    assert all(len(m["prompt_token_ids"]) == m["prompt_tokens"] for m in (first, second))
    step = trajectory["steps"][1]
    assert step["observation"]["results"][0]["source_call_id"] == step["tool_calls"][0]["tool_call_id"]
    assert (tmp_path / "job" / ID / "verifier" / "reward.txt").read_text() in ("0.0\n", "1.0\n")
    assert not (tmp_path / "job" / "train-000099-0000" / "verifier" / "reward.txt").exists()


HARBOR_PYTHON = os.environ.get("SANDBOX_RL_HARBOR_PYTHON", "")
READ = """
import json, sys
from pathlib import Path
from harbor.models.job.result import JobStats
from harbor.models.trajectories import Trajectory
from harbor.viewer.scanner import JobScanner

job = Path(sys.argv[1])
scanner = JobScanner(job.parent)
result, config = scanner.get_job_result(job.name), scanner.get_job_config(job.name)
trials = [scanner.get_trial_result(job.name, name) for name in scanner.list_trials(job.name)]
assert all(scanner.get_trial_config(job.name, trial.trial_name) for trial in trials)
read = [Trajectory.model_validate_json(p.read_text()) for p in job.glob("*/agent/trajectory.json")]
added = JobStats.from_trial_results(trials)
for stats in (added, result.stats):
    for found in stats.evals.values():
        found.metrics = []  # of its own evaluation, which is none of a trial's
print(json.dumps({
    "trials": [len(trials), result.n_total_trials, len(read)],
    "stats": [s.model_dump(mode="json") for s in (added, result.stats)],
    "agent": config.agents[0].name,
    "tokens": sum(len(step.metrics.logprobs or []) for t in read for step in t.steps if step.metrics),
}))
"""


@pytest.mark.skipif(
    not HARBOR_PYTHON, reason="SANDBOX_RL_HARBOR_PYTHON names no Python >= 3.12 that has harbor"
)
def test_harbor_reads_the_job_by_its_own_models(run, tmp_path):
    job = tmp_path / "jobs" / "job"
    job.parent.mkdir()
    export_episodes(run, Format.HARBOR, job)
    done = subprocess.run(
        [HARBOR_PYTHON, "-c", READ, str(job)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trials"], found["agent"]) == ([25, 25, 25], "sandbox_rl")
    added, written = found["stats"]
    assert added == written
    assert added["n_errored_trials"] > 0
    ours = [json.loads(path.read_text()) for path in job.glob("*/agent/trajectory.json")]
    assert found["tokens"] == sum(
        len(step["metrics"].get("logprobs") or []) for t in ours for step in t["steps"] if "metrics" in step
    )


def test_inspect_reads_its_log(run, tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    assert export_episodes(run, Format.INSPECT, tmp_path / "run.eval") == 25
    read = log.read_eval_log(str(tmp_path / "run.eval"))
    assert (read.status, len(read.samples)) == ("success", 25)
    (sample,) = (sample for sample in read.samples if sample.metadata["id"] == ID)
    assert [message.role for message in sample.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    assert sample.messages[1].tool_calls[0].arguments == {"command": "python3 -c 'print(301)'"}
    assert sample.scores["reward"].answer == "301"
    assert [usage.total_tokens for usage in sample.model_usage.values()] == [6]
    assert sample.completed_at >= sample.started_at
