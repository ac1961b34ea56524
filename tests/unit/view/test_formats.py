"""Files that other tools open hold what was sampled, exactly, and every episode that stands."""

from __future__ import annotations

import json

import pytest

from sandbox_rl.errors import ConfigError
from sandbox_rl.journal import Journal
from sandbox_rl.view.formats import Format, export_episodes
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


def test_inspect_reads_its_log(run, tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    assert export_episodes(run, Format.INSPECT, tmp_path / "run.eval") == 25
    read = log.read_eval_log(str(tmp_path / "run.eval"))
    assert (read.status, len(read.samples)) == ("success", 25)
    (sample,) = (sample for sample in read.samples if sample.metadata["id"] == ID)
    assert [message.role for message in sample.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    assert sample.messages[1].tool_calls[0].arguments == {"command": "python3 -c 'print(301)'"}
    assert sample.scores["reward"].answer == "301"
