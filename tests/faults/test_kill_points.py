"""FI-12, FI-16, FI-17, FI-25: killed anywhere and resumed, a run is the uninterrupted one, bit for bit.

The table of twenty points with one process and with two: `python -m tests.faults.kill_points`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.kill_points import SETTINGS, STEPS, Control

NAME = "plain-1-tool-call-14-0"
"""Of the run that is killed there first."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The controls of all tests share it."""
    return tmp_path_factory.mktemp("kill-points")


def test_killed_in_one_step_three_times(directory):
    """The first of the second pass: as it is rolled out, trained on and saved; no start gets further."""
    control = Control(directory, "plain", 1)
    assert control.differences("tool call:14", 0, "backward:1", "rename:1") == []
    starts = [json.loads(line) for line in (control.run(NAME) / "history.jsonl").read_text().splitlines()]
    assert [start["event"] for start in starts] == ["started", *["resumed"] * 3, "finished"]
    # An episode that is tried again has more tool calls, and the first kill comes a step sooner then.
    assert {start["step"] for start in starts[1:4]} <= {2, 3}
    assert (starts[0]["step"], starts[4]["step"]) == (0, STEPS)


@pytest.mark.faults
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("settings", [name for name in SETTINGS if name != "async"])
def test_killed_at_seeded_points(directory, settings, processes):
    control = Control(directory, settings, processes)
    points = control.points(seed=1, count=4)
    differing = {point: found for point in points if (found := control.differences(*point))}
    assert not differing


@pytest.mark.faults
def test_killed_asynchronous_runs_lose_no_sample_and_use_none_twice(directory):
    control = Control(directory, "async", 1)
    points = control.points(seed=1, count=4)
    differing = {point: found for point in points if (found := control.differences(*point))}
    assert not differing
    assert control.state == {"violation": None, "twice": [], "lost": [], "damaged": []}
