"""`status.json` follows what a run does, and goes with it."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.runs import status
from sandbox_rl.runs.status import RunStatus
from sandbox_rl.types import Task

ARGS = SimpleNamespace(save_strategy="steps")


def said(path, **wanted):
    """What is written once it says so."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = json.loads(path.read_text()) if path.exists() else {}
        if wanted.items() <= found.items():
            return found
        time.sleep(0.01)
    raise AssertionError(f"{wanted} is not in {found}")


def test_it_says_what_is_going_on_and_is_written_only_when_that_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(status, "EVERY_S", 0.01)
    occupancy, path = Occupancy(), tmp_path / "status.json"
    state = SimpleNamespace(global_step=4, max_steps=9, save_steps=3)
    episode = EpisodeRequest(id="a", task=Task("t", "?", "42"), seed=0)
    with RunStatus(tmp_path, occupancy, object()) as running:
        running.on_step_begin(ARGS, state, None)
        assert said(path, doing="update", step=4, steps=9)["next_checkpoint"] == 6
        occupancy.asked = 3
        occupancy.started(episode, ())
        occupancy.sampling(episode)
        found = said(path, doing="episodes", episodes={"alive": 1, "sampling": 1, "waiting": 2})
        assert found["servers"] == []
        written = path.stat().st_mtime_ns
        time.sleep(0.1)
        assert path.stat().st_mtime_ns == written
        occupancy.ended(episode, None)
        occupancy.asked = 0
        state.global_step = 8
        running.on_step_end(ARGS, state, None)
        assert said(path, doing="between", step=8)["next_checkpoint"] == 9
    assert not path.exists()


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path):
    with RunStatus(tmp_path / "gone", Occupancy(), object()):
        pass
