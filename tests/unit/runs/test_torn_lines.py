"""A line that a kill or a full disk has torn takes nothing with it of what is written after it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.outputs import append_line
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.training.callbacks import LogMetrics

TORN = b'{"step": 1, "reward": 0.5}\n{"step": 2, "rew'


def metrics(directory):
    state = SimpleNamespace(is_world_process_zero=True, global_step=3)
    LogMetrics(directory / "metrics.jsonl").on_log(None, state, None, logs={"loss": 0.25})
    return directory / "metrics.jsonl"


def alarms(directory):
    Alarms(directory / "alarms.jsonl").sound(3, AlarmName.NO_CALLS, "none")
    return directory / "alarms.jsonl"


def history(directory):
    History.read(RunDirectory(directory)).with_event("stopped", 3)
    return directory / "history.jsonl"


@pytest.mark.parametrize("write", [metrics, alarms, history])
def test_the_next_line_stands_by_itself(tmp_path, write):
    path = tmp_path / f"{write.__name__}.jsonl"
    path.write_bytes(TORN)
    assert write(tmp_path) == path
    *before, last = path.read_bytes().splitlines()
    assert before == TORN.splitlines()
    assert json.loads(last)["step"] == 3


@pytest.mark.parametrize(("there", "then"), [(b"", b"x\n"), (b"a\n", b"a\nx\n"), (b"a", b"a\nx\n")])
@pytest.mark.parametrize("to_disk", [False, True])
def test_a_line_is_added_behind_whole_lines(tmp_path, there, then, to_disk):
    (tmp_path / "lines").write_bytes(there)
    append_line(tmp_path / "lines", b"x", to_disk=to_disk)
    assert (tmp_path / "lines").read_bytes() == then


def test_a_file_is_made_with_its_first_line(tmp_path):
    append_line(tmp_path / "lines", b"x")
    append_line(tmp_path / "lines", b"y")
    assert (tmp_path / "lines").read_bytes() == b"x\ny\n"
