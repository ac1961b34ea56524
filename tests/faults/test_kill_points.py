"""FI-12, FI-16, FI-17, FI-25: killed anywhere and resumed, a run is the uninterrupted one, bit for bit.

The table of twenty points with one process and with two: `python -m tests.faults.kill_points`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kill_points import SETTINGS, Control


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The controls of all tests share it."""
    return tmp_path_factory.mktemp("kill-points")


def test_killed_between_saves_of_the_second_pass(directory):
    control = Control(directory, "plain", 1)
    assert control.differences("backward:4", 0) == []
    assert control.differences("rename:4", 0) == []
    assert control.differences("tool call:14", 0) == []


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
