"""Killed at random instants and resumed, an evaluation repeats nothing, loses nothing, and is exact."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox_rl.evaluation.run import read_rows
from sandbox_rl.journal import read_journal
from sandbox_rl.policies.scripted import ScriptedPolicy
from tests import prepared
from tests.unit.evaluation.scripted_run import SAMPLES, TASKS, is_right, measured, plan, script
from tests.unit.rig import ExactScoring, make_engine

ROOT = Path(__file__).parents[3]
EXPECTED = sum(is_right(i, s) for i in range(TASKS) for s in range(SAMPLES)) / (TASKS * SAMPLES)


def child(journal: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.evaluation.scripted_run", str(journal), "0.03"]
    return prepared.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def lines(journal: Path) -> int:
    """Events that are in the journal."""
    return sum(path.read_bytes().count(b"\n") for path in journal.glob("*.jsonl"))


@pytest.mark.slow
def test_five_kills_at_random_points(tmp_path):
    journal = tmp_path / "journal"
    generator = random.Random(20)
    total = TASKS * SAMPLES
    marks = sorted(generator.sample(range(50, total - 150), 5))
    kills = 0
    for mark in marks:
        process = child(journal)
        deadline = time.monotonic() + 120
        while lines(journal) < 4 * mark and process.poll() is None:
            assert time.monotonic() < deadline, "the child makes no progress"
            time.sleep(0.02)  # what is looked at is megabytes, and the child wants the core
        time.sleep(generator.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        process.communicate()
        kills += 1
        # What a kill within a write leaves behind.
        if kills % 2:
            with max(journal.glob("*.jsonl")).open("ab") as file:
                file.write(b'{"event":"ended","episode_id":"sandbox-00')
    process = child(journal)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output.split() == [str(total), str(EXPECTED)]

    records = list(read_journal(journal))
    assert kills == 5
    assert len(records) == total
    wanted = {request.id: request for _, request in plan().requests("sandbox")}
    assert {record["episode_id"] for record in records} == wanted.keys()
    assert all(record["seed"] == wanted[record["episode_id"]].seed for record in records)


async def test_a_complete_run_runs_nothing_again(tmp_path):
    journal = tmp_path / "journal"
    scoring = ExactScoring()
    engine = make_engine(ScriptedPolicy(script), scoring=scoring)
    first = await measured(plan(), engine, journal)
    before = lines(journal)
    seen: list[float | None] = []
    again = await measured(plan(), engine, journal, lambda row, _: seen.append(row.reward))
    assert again == first
    assert lines(journal) == before
    assert seen == []
    assert scoring.scored == TASKS * SAMPLES
    assert first.modes["sandbox"].accuracy.value == pytest.approx(EXPECTED, abs=1e-12)


async def test_unjudged_episodes_are_run_again(tmp_path):
    """A judge that was down: nothing else is repeated when it is back."""
    journal = tmp_path / "journal"

    class HalfDown(ExactScoring):
        down = True

        async def score(self, task, answer):
            reward = await super().score(task, answer)
            if self.down and task.id.endswith("7"):
                return type(reward)(None, detail="not judged")
            return reward

    scoring = HalfDown()
    engine = make_engine(ScriptedPolicy(script), scoring=scoring)
    first = await measured(plan(), engine, journal)
    unjudged = sum(str(i).endswith("7") for i in range(TASKS)) * SAMPLES
    assert first.unjudged == unjudged
    scoring.down, scoring.scored = False, 0
    second = await measured(plan(), engine, journal)
    assert scoring.scored == unjudged
    assert second.unjudged == 0
    assert len(read_rows(journal)) == TASKS * SAMPLES
    assert second.modes["sandbox"].accuracy.value == pytest.approx(EXPECTED, abs=1e-12)


async def test_cancelling_loses_no_finished_episode(tmp_path):
    journal = tmp_path / "journal"
    engine = make_engine(ScriptedPolicy(script, delay_s=0.02))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await measured(plan(), engine, journal)
    engine = make_engine(ScriptedPolicy(script))
    results = await measured(plan(), engine, journal)
    assert len(list(read_journal(journal))) == results.modes["sandbox"].episodes == TASKS * SAMPLES
