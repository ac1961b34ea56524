"""What journal and ledger cost: milliseconds per turn and per update, bytes per token, and time and memory to
read and to check them.

Writes episodes turn by turn as a run does, and each update's line of the ledger, then makes the index, lists,
searches, opens, and checks the run (`sandbox-rl check`). Beside the journal's time per turn stands that of
writing as many bytes to a file, in the same run. Fails over 1 ms per turn, 9 bytes per token, 60 s for a
check of 100,000 episodes, or a reading process that grows with the number of episodes.

    python scripts/bench_journal.py [--episodes 2000] [--turns 20] [--tokens 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from sandbox_rl.journal import Journal
from sandbox_rl.ledger import Group, Ledger, Sample, SampleEnd, Update
from sandbox_rl.rollout.order import of_group
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import FORMAT
from sandbox_rl.training.groups import advantages, group_requests
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    Observation,
    Reward,
    Rollout,
    StopReason,
    Task,
    ToolCall,
    Trajectory,
    Turn,
    TurnTiming,
)

REQUIRED_MS = 1.0
REQUIRED_BYTES = 9.0
REQUIRED_GROWTH_MB = 150.0
REQUIRED_CHECK_S = 60.0
"""Of 100,000 episodes."""
SIZE, GROUPS, SEED = 8, 8, 0
TASKS = [Task(f"task-{i}", "?", "4", domain="math") for i in range(500)]
OBSERVED = 1_500
"""Characters of an observation."""

READ = """
import json, resource, sys, time
from pathlib import Path
from sandbox_rl.journal import Index
found = {}
with Index(Path(sys.argv[1])) as index:
    started = time.perf_counter(); found["episodes"] = index.refresh()
    found["index_s"] = time.perf_counter() - started
    started = time.perf_counter()
    rows = index.select("SELECT id FROM episodes ORDER BY reward DESC, id LIMIT 50")
    found["list_s"] = time.perf_counter() - started
    started = time.perf_counter(); index.record(rows[0]["id"])
    found["open_s"] = time.perf_counter() - started
found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""

CHECK = """
import json, resource, sys, time
from pathlib import Path
from sandbox_rl.runs.check import check_run
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
started, worked = time.perf_counter(), time.process_time(); found = check_run(Path(sys.argv[1]))
assert found.violation is None, found
print(json.dumps({
    "check_s": time.perf_counter() - started,
    "check_processor_s": time.process_time() - worked,
    "check_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
}))
"""


def episode(number: int, turns: int, tokens: int, draw: random.Random) -> Rollout:
    """Half of a turn's tokens are sampled and half are observed."""
    half = tokens // 2
    made = tuple(
        Turn(
            Action(
                tuple(draw.choices(range(150_000), k=half)),
                tuple(-draw.random() for _ in range(half)),
                "stop",
            ),
            (ToolCall("execute_bash", {"command": "python3 solve.py | tail"}),),
            (Observation("x" * OBSERVED, "execute_bash", exit_code=0, seconds=0.2),),
            tuple(draw.choices(range(150_000), k=half)) if index + 1 < turns else (),
            TurnTiming(1.0, 0.2),
        )
        for index in range(turns)
    )
    answer = Answer(AnswerStatus.OK, str(number))
    trajectory = Trajectory(
        f"task-{number // 8}", tuple(range(500)), made, StopReason.SUBMITTED, answer, f"episode-{number}"
    )
    return Rollout(trajectory, Reward(float(number % 2)), Task(trajectory.task_id, "?", "4", domain="math"))


def write(run: RunDirectory, rollouts: list[Rollout], updates: int) -> dict[str, float]:
    """Write a run of so many updates, the given episodes in turn under the names of its schedule."""
    per_turn: list[float] = []
    per_update: list[float] = []
    tokens = 0
    begin(run)
    ledger = Ledger(run.ledger)
    with Journal(run.journal, start=0) as journal:
        for update in range(updates):
            groups = []
            for number in range(update * GROUPS, (update + 1) * GROUPS):
                task = of_group(TASKS, number, seed=SEED)
                samples = []
                for place, request in enumerate(group_requests(task, number, seed=SEED, size=SIZE)):
                    done = _named(rollouts[(number + place) % len(rollouts)], request.id, task)
                    context = {"phase": "train", "step": update, "seed": request.seed}
                    journal.started(request.id, task, done.trajectory.prompt_ids, **context)
                    for turn in done.trajectory.turns:
                        started = time.perf_counter()
                        journal.turn(request.id, turn)
                        per_turn.append(time.perf_counter() - started)
                        tokens += len(turn.action.token_ids) + len(turn.observation_ids)
                    tokens += len(done.trajectory.prompt_ids)
                    journal.ended(done, **context)
                    samples.append(done)
                weights = advantages([done.reward.value for done in samples], "rloo")
                ended = [
                    Sample(done.trajectory.episode_id, SampleEnd.USED, weight)
                    for done, weight in zip(samples, weights, strict=True)
                ]
                groups.append(Group(number, task.id, None, tuple(ended)))
            started = time.perf_counter()
            ledger.write(Update(update + 1, time.time(), tuple(groups)))
            per_update.append(time.perf_counter() - started)
    columns = sum(path.stat().st_size for path in run.journal.glob("*.tokens"))
    text = sum(path.stat().st_size for path in run.journal.glob("*.jsonl"))
    return {
        "ms_per_turn": 1e3 * statistics.fmean(per_turn),
        "ms_per_turn_p99": 1e3 * statistics.quantiles(per_turn, n=100)[98],
        "ledger_ms_per_update": 1e3 * statistics.fmean(per_update),
        "ledger_bytes_per_sample": run.ledger.stat().st_size / (updates * GROUPS * SIZE),
        "bytes_per_token": columns / tokens,
        "tokens": float(tokens),
        "columns_mb": columns / 1e6,
        "text_mb": text / 1e6,
        "plain_ms_per_turn": plain(columns + text, len(per_turn), run.path),
    }


def begin(run: RunDirectory) -> None:
    """What a run writes before its first episode."""
    source = {"type": "reasoning_gym", "dataset": "chain_sum", "size": len(TASKS), "domain": "math"}
    run.path.mkdir()
    run.recipe.write_text(yaml.safe_dump({"name": "bench", "seed": SEED, "data": {"sources": [source]}}))
    run.tasks.write_text(json.dumps({"ids": [task.id for task in TASKS]}))
    sizes = {"episodes per group": SIZE, "groups per generation": GROUPS, "generations per update": "1"}
    start = {
        "event": "started",
        "step": 0,
        "time": time.time(),
        "format": FORMAT,
        "sizes": sizes,
        "processes": 1,
    }
    (run.path / "history.jsonl").write_text(json.dumps(start) + "\n")


def plain(size: int, writes: int, directory: Path) -> float:
    """Milliseconds that one of so many writes of the same bytes takes."""
    piece = os.urandom(size // writes)
    path = directory / "plain"
    with path.open("wb", buffering=0) as file:
        started = time.perf_counter()
        for _ in range(writes):
            file.write(piece)
        took = time.perf_counter() - started
    path.unlink()
    return 1e3 * took / writes


def read(code: str, directory: Path) -> dict[str, float]:
    """In a process of its own, whose memory is nobody else's."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _named(done: Rollout, name: str, task: Task) -> Rollout:
    t = done.trajectory
    return Rollout(Trajectory(task.id, t.prompt_ids, t.turns, t.stop, t.answer, name), done.reward, task)


def main() -> int:
    """Print the figures; returns 1 when one is out of bounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=2_000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1_000, help="of a turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    draw = random.Random(0)
    rollouts = [episode(number, args.turns, args.tokens, draw) for number in range(16)]
    with tempfile.TemporaryDirectory() as directory:
        small, whole = RunDirectory(Path(directory) / "small"), RunDirectory(Path(directory) / "whole")
        updates = max(10, args.episodes // (GROUPS * SIZE))
        write(small, rollouts, updates // 10)
        found = write(whole, rollouts, updates)
        found |= read(READ, whole.journal) | {"peak_mb_of_a_tenth": read(READ, small.journal)["peak_mb"]}
        found |= read(CHECK, whole.path) | {"check_mb_of_a_tenth": read(CHECK, small.path)["check_mb"]}
    found["check_s_per_100k"] = found["check_s"] * 100_000 / found["episodes"]
    found["index_s_per_100k"] = found["index_s"] * 100_000 / found["episodes"]
    for name, value in found.items():
        print(f"{name:22} {value:12.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    growth = max(found[f"{what}_mb"] - found[f"{what}_mb_of_a_tenth"] for what in ("peak", "check"))
    fine = found["ms_per_turn"] <= REQUIRED_MS and found["bytes_per_token"] <= REQUIRED_BYTES
    fine = fine and found["check_s_per_100k"] <= REQUIRED_CHECK_S
    return 0 if fine and growth <= REQUIRED_GROWTH_MB else 1


if __name__ == "__main__":
    sys.exit(main())
