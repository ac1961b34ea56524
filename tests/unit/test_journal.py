"""The journal gives back what was written, also after a kill at any instant."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import time

import pytest

from sandbox_rl.errors import DataError
from sandbox_rl.journal import Index, Journal, read_journal, rollout_record, trajectory_from_record
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


def rollout(size: int = 3, id: str = "e-1") -> Rollout:
    turns = (
        Turn(
            Action((5, 6, 2), (-0.5, -1.25, -(2.0**-30)), "stop", 7),
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
        "task-1", (1, 2), turns, StopReason.SUBMITTED, Answer(AnswerStatus.OK, "42"), id, seconds=1.5
    )
    return Rollout(trajectory, Reward(0.5, {"math": 0.5}, "half"), Task("task-1", "?", "42", domain="math"))


def write(journal: Journal, done: Rollout, **context: object) -> None:
    """As an episode goes: started, each turn, ended."""
    trajectory = done.trajectory
    journal.started(trajectory.episode_id, done.task, trajectory.prompt_ids, **context)
    for turn in trajectory.turns:
        journal.turn(trajectory.episode_id, turn)
    journal.ended(done)


@pytest.mark.parametrize("turn_by_turn", [True, False])
def test_what_is_read_equals_what_was_written(tmp_path, turn_by_turn):
    with Journal(tmp_path) as journal:
        if turn_by_turn:
            write(journal, rollout(), phase="train", step=3)
        else:
            journal.ended(rollout(), phase="train", step=3)
    (record,) = read_journal(tmp_path)
    assert trajectory_from_record(record) == rollout().trajectory
    whole = rollout_record(rollout(), phase="train", step=3)
    assert {name: record[name] for name in whole} == json.loads(json.dumps(whole))


def test_the_gold_answer_is_not_in_the_journal(tmp_path):
    secret = Rollout(
        rollout().trajectory, Reward(0.0), Task("task-1", "?", "GOLD-SECRET", metadata={"x": "GOLD-SECRET"})
    )
    with Journal(tmp_path) as journal:
        write(journal, secret)
    assert not [path for path in tmp_path.iterdir() if b"GOLD-SECRET" in path.read_bytes()]
    assert "GOLD-SECRET" not in json.dumps(rollout_record(secret))


def test_log_probs_of_an_engine_that_gives_none_stay_unknown(tmp_path):
    turns = (Turn(Action((5, 2), None, "stop")),)
    trajectory = Trajectory("task-1", (1,), turns, StopReason.SUBMITTED, Answer(AnswerStatus.OK, "4"), "e-1")
    with Journal(tmp_path) as journal:
        journal.ended(Rollout(trajectory, Reward(1.0), rollout().task))
    (record,) = read_journal(tmp_path)
    assert record["turns"][0]["logprobs"] is None


@pytest.mark.parametrize(
    "odd",
    [
        Rollout(rollout().trajectory, Reward(float("nan")), rollout().task),
        Rollout(
            Trajectory(
                "t", (1,), (Turn(Action((5,), (float("-inf"),), "stop")),), StopReason.SUBMITTED,
                Answer(AnswerStatus.OK, "4"), "e-1",
            ),
            Reward(1.0),
            rollout().task,
        ),
    ],
    ids=["reward", "log-prob"],
)  # fmt: skip
def test_what_is_not_finite_is_refused_and_harms_nothing(tmp_path, odd):
    with Journal(tmp_path) as journal:
        with pytest.raises(ValueError, match="finite"):
            journal.ended(odd)
        journal.ended(rollout(id="e-2"))
    assert [record["episode_id"] for record in read_journal(tmp_path)] == ["e-2"]


def test_a_second_try_of_an_episode_replaces_the_first(tmp_path):
    with Journal(tmp_path) as journal:
        journal.started("e-1", rollout().task, (9, 9), step=1)
        journal.turn("e-1", rollout().trajectory.turns[0])
        write(journal, rollout(), step=1)
    (record,) = read_journal(tmp_path)
    assert trajectory_from_record(record) == rollout().trajectory


def test_an_episode_under_way_is_seen_turn_by_turn(tmp_path):
    with Journal(tmp_path) as journal, Index(tmp_path) as index:
        journal.started("e-1", rollout().task, (1, 2), step=4)
        assert index.refresh() == 0
        assert index.record("e-1")["turns"] == []
        journal.turn("e-1", rollout().trajectory.turns[0])
        index.refresh()
        (row,) = index.select("SELECT state, turns, step FROM episodes")
        assert tuple(row) == ("live", 1, 4)
        assert index.record("e-1")["turns"][0]["token_ids"] == [5, 6, 2]


def test_what_a_resumed_run_does_again_replaces_what_was_recorded_of_it(tmp_path):
    def stand() -> list[str]:
        return sorted(record["episode_id"] for record in read_journal(tmp_path))

    with Journal(tmp_path, start=0) as journal:
        for step in range(3):
            for phase in ("train", "eval"):
                write(journal, rollout(id=f"{phase}-{step}"), phase=phase, step=step)
    with Journal(tmp_path, start=1) as journal:
        journal.replaced(["train-1", "train-2", "eval-2"])
        assert stand() == ["eval-0", "eval-1", "train-0"]
        write(journal, rollout(id="train-1"), phase="train", step=1)
        write(journal, rollout(id="train-2-r1"), phase="train", step=2)
    assert stand() == ["eval-0", "eval-1", "train-0", "train-1", "train-2-r1"]


def test_turns_of_an_episode_that_was_lost_to_a_fault_do_not_count(tmp_path):
    trajectory = Trajectory("task-1", (1, 2), (), StopReason.INFRA_FAULT, Answer(AnswerStatus.MISSING), "e-1")
    with Journal(tmp_path) as journal:
        journal.started("e-1", rollout().task, (1, 2))
        journal.turn("e-1", rollout().trajectory.turns[0])
        journal.ended(Rollout(trajectory, Reward(None), rollout().task))
    (record,) = read_journal(tmp_path)
    assert trajectory_from_record(record) == trajectory


def test_an_episode_of_a_group_that_is_sampled_again_is_told_apart(tmp_path):
    with Journal(tmp_path) as journal:
        write(journal, rollout(), phase="train", step=3)
        journal.cancelled("e-1")
    assert [record["phase"] for record in read_journal(tmp_path)] == ["cancelled"]


def test_an_episode_that_was_cancelled_is_not_under_way(tmp_path):
    with Journal(tmp_path) as journal, Index(tmp_path) as index:
        journal.started("e-1", rollout().task, (1, 2))
        journal.abandoned("e-1")
        assert index.refresh() == 0
        assert [row["state"] for row in index.select("SELECT state FROM episodes")] == ["abandoned"]


def test_starts_and_processes_have_files_of_their_own(tmp_path):
    for start in range(2):
        for process in range(2):
            with Journal(tmp_path, process=process) as journal:
                write(journal, rollout(id=f"{process}-{start}"))
    assert len(list(tmp_path.glob("*.jsonl"))) == 4
    assert sorted(r["episode_id"] for r in read_journal(tmp_path)) == ["0-0", "0-1", "1-0", "1-1"]


def test_an_index_that_was_removed_is_made_again_alike(tmp_path):
    def rows() -> list[tuple[object, ...]]:
        with Index(tmp_path) as index:
            index.refresh()
            return [tuple(row) for row in index.select("SELECT * FROM episodes ORDER BY id")]

    with Journal(tmp_path) as journal:
        for number in range(3):
            write(journal, rollout(id=f"e-{number}"), step=number)
            first = rows()  # made bit by bit
    (tmp_path / "index.sqlite").unlink()
    assert rows() == first
    assert len(first) == 3


@pytest.mark.parametrize("torn", [b'{"event":"turn","episode_id":"e-', b"\xff" * 200_000])
def test_a_torn_last_line_is_not_read(tmp_path, torn):
    with Journal(tmp_path) as journal:
        write(journal, rollout())
    (lines,) = tmp_path.glob("*.jsonl")
    with lines.open("ab") as file:
        file.write(torn)
    assert len(list(read_journal(tmp_path))) == 1


def test_tokens_that_were_changed_are_found_out(tmp_path):
    with Journal(tmp_path) as journal:
        write(journal, rollout())
    (tokens,) = tmp_path.glob("*.tokens")
    content = bytearray(tokens.read_bytes())
    content[9] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(DataError, match="cut or changed"):
        list(read_journal(tmp_path))


@pytest.mark.parametrize("text", [b"half", b'"index":1', b"put"], ids=["the end", "a number", "a turn"])
def test_a_line_that_was_changed_is_not_believed(tmp_path, text):
    with Journal(tmp_path) as journal:
        write(journal, rollout())
    (lines,) = tmp_path.glob("*.jsonl")
    content = lines.read_bytes()
    assert text in content
    lines.write_bytes(content.replace(text, text[:-1] + b"2"))
    with Index(tmp_path, memory=True) as index:
        index.refresh()
        (row,) = index.select("SELECT state FROM episodes")
        if row["state"] == "ended":
            with pytest.raises(DataError, match="not the one that was written"):
                index.record("e-1")


def test_a_directory_without_a_journal_is_one_line(tmp_path):
    with pytest.raises(DataError, match="there is no journal"):
        list(read_journal(tmp_path / "nowhere"))


def test_a_full_disk_loses_what_did_not_fit_and_nothing_else(tmp_path):
    """The limit on a file's size stands for the disk: a write of which only a part fits is there, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Journal(tmp_path) as journal:
            write(journal, rollout(id="e-1"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
            with pytest.raises(OSError, match="too large"):
                write(journal, rollout(size=2_000, id="e-2"))
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            write(journal, rollout(size=2_000, id="e-2"))
            write(journal, rollout(id="e-3"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert [record["episode_id"] for record in read_journal(tmp_path)] == ["e-1", "e-2", "e-3"]


def _write_for_ever(directory, process):
    with Journal(directory, process=process) as journal:
        number = 0
        while True:
            write(journal, rollout(size=2_000, id=f"{process}-{number}"))
            number += 1


def test_what_a_killed_process_had_finished_is_all_there(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_for_ever, args=(tmp_path, process)) for process in range(2)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    sizes: list[int] = []
    while (len(sizes) < 2 or min(sizes) < 500_000) and time.monotonic() < deadline:
        time.sleep(0.01)
        sizes = [path.stat().st_size for path in tmp_path.glob("*.tokens")]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    records = list(read_journal(tmp_path))
    assert all(len(record["turns"][0]["observation_ids"]) == 2_000 for record in records)
    for process in range(2):
        numbers = [int(r["episode_id"][2:]) for r in records if r["episode_id"].startswith(f"{process}-")]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 20


def test_an_index_of_other_files_is_made_anew(tmp_path):
    """A run's directory can be removed and made again by another run, with as many or more bytes."""
    where = tmp_path / "index.sqlite"
    for name in ("first", "second"):
        directory = tmp_path / "journal"
        with Journal(directory) as journal:
            for number in range(2):
                write(journal, rollout(id=f"{name}-{number}"))
        with Index(directory, file=where) as index:
            assert index.refresh() == 2
            assert {row["id"] for row in index.select("SELECT id FROM episodes")} == {
                f"{name}-0",
                f"{name}-1",
            }
        assert not (directory / "index.sqlite").exists()
        for path in directory.iterdir():
            path.unlink()


def test_an_index_is_made_in_pieces_as_at_once(tmp_path):
    with Journal(tmp_path) as journal:
        for number in range(20):
            write(journal, rollout(id=f"train-{number // 4:06d}-{number % 4:04d}-r1"), phase="train", step=1)
    with Index(tmp_path, memory=True) as whole, Index(tmp_path, memory=True) as pieces:
        whole.refresh()
        calls = 1
        while pieces.advance(0.0):  # a machine that is too slow for its time comes to an end as well
            calls += 1
        sql = "SELECT * FROM episodes ORDER BY id"
        assert calls > 1
        assert [tuple(row) for row in pieces.select(sql)] == [tuple(row) for row in whole.select(sql)]
        groups = whole.select(
            "SELECT siblings, count(*) AS n FROM episodes GROUP BY siblings ORDER BY siblings"
        )
        assert [tuple(row) for row in groups] == [(f"train-{number:06d}-r1", 4) for number in range(5)]


def test_half_a_surrogate_pair_does_not_keep_an_episode_out_of_the_index(tmp_path):
    done = rollout()
    answer = Answer(AnswerStatus.OK, "4\ud800")
    trajectory = dataclasses.replace(done.trajectory, answer=answer, task_id="task \udfff")
    with Journal(tmp_path) as journal:
        journal.ended(dataclasses.replace(done, trajectory=trajectory))
    with Index(tmp_path, memory=True) as index:
        assert index.refresh() == 1
        assert index.select("SELECT answer FROM episodes")[0]["answer"] == "4\\ud800"
