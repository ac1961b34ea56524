"""The journal gives back what was written, also after a kill in the middle of a line."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import time

import pytest

from sandbox_rl.journal import Journal, read_journal, rollout_record, trajectory_from_record
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    MalformedCall,
    Observation,
    Reward,
    Rollout,
    StopReason,
    Task,
    ToolCall,
    ToolFailure,
    Trajectory,
    Turn,
    TurnTiming,
)


def rollout(size: int = 3) -> Rollout:
    turns = (
        Turn(
            Action((5, 6, 2), (-0.5, -1.25, -1e-9), "stop", 7),
            (ToolCall("execute_bash", {"command": "echo \ud800 é"}), MalformedCall("no JSON")),
            (
                Observation("out\x00put", "execute_bash", exit_code=3, seconds=0.5),
                Observation("bad", failure=ToolFailure.MALFORMED),
            ),
            tuple(range(size)),
            TurnTiming(0.25, 0.5),
        ),
        Turn(Action((8,), (-2.0,), "length"), observations=(Observation("", "submit", submitted=True),)),
    )
    trajectory = Trajectory(
        "task-1", (1, 2), turns, StopReason.SUBMITTED, Answer(AnswerStatus.OK, "42"), "e-1", seconds=1.5
    )
    return Rollout(trajectory, Reward(0.5, {"math": 0.5}, "half"), Task("task-1", "?", "42", domain="math"))


def test_what_is_read_equals_what_was_written(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with Journal(path) as journal:
        journal.write(rollout(), phase="train", step=3)
    (record,) = read_journal(path)
    assert trajectory_from_record(record) == rollout().trajectory
    assert (record["phase"], record["step"], record["reward"]) == ("train", 3, 0.5)


def test_the_gold_answer_is_not_in_the_journal():
    secret = Rollout(
        rollout().trajectory, Reward(0.0), Task("task-1", "?", "GOLD-SECRET", metadata={"x": "GOLD-SECRET"})
    )
    assert "GOLD-SECRET" not in json.dumps(rollout_record(secret))


@pytest.mark.parametrize("torn", [b'{"episode_id": "half', b"\xff" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "episodes.jsonl"
    with Journal(path) as journal:
        journal.write(rollout())
    with path.open("ab") as file:
        file.write(torn)
    assert len(list(read_journal(path))) == 1
    with Journal(path) as journal:
        journal.write(rollout())
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


@pytest.mark.parametrize("torn", [b'{"episode_id": "half', b"\xff" * 200_000])
def test_a_line_torn_beside_a_writer_that_goes_on_is_skipped(tmp_path, torn):
    path = tmp_path / "episodes.jsonl"
    with Journal(path) as journal:
        journal.write(rollout(), step=1)
        with path.open("ab") as killed:
            killed.write(torn)
        journal.write(rollout(), step=2)
        journal.write(rollout(), step=3)
    assert [record["step"] for record in read_journal(path)] == [1, 2, 3]
    assert len(path.read_bytes().splitlines()) == 4


def test_a_writer_that_holds_on_to_the_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("sandbox_rl.journal.LOCK_TIMEOUT_S", 0.05)
    path = tmp_path / "episodes.jsonl"
    with Journal(path) as journal, path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="locked by another process"):
            journal.write(rollout(), step=1)
        fcntl.flock(other, fcntl.LOCK_UN)
        journal.write(rollout(), step=2)
    assert [record["step"] for record in read_journal(path)] == [2]


def _write_for_ever(path):
    with Journal(path) as journal:
        while True:
            journal.write(rollout(size=2_000))


def test_kills_and_parallel_writers_never_mix_lines(tmp_path):
    path = tmp_path / "episodes.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_for_ever, args=(path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 2_000_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    for writer in writers:  # the second one writes on after the first one's end
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    records = list(read_journal(path))
    assert len(records) > 50
    assert all(len(record["turns"][0]["observation_ids"]) == 2_000 for record in records)
    lines = path.read_bytes().split(b"\n")
    assert len(lines) - len(records) <= 2  # each kill tears one line at most
