"""What the journal costs: milliseconds per turn, bytes per token, and time and memory to read it.

Writes episodes turn by turn as a run does, then makes the index, lists, searches and opens. Beside the
journal's time per turn stands that of writing as many bytes to a file, in the same run. Fails over 1 ms per
turn, 9 bytes per token, or a reading process that grows with the number of episodes.

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

from sandbox_rl.journal import Journal
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


def write(directory: Path, rollouts: list[Rollout], episodes: int) -> dict[str, float]:
    """Write so many episodes, the given ones in turn under new names."""
    per_turn: list[float] = []
    tokens = 0
    with Journal(directory) as journal:
        for number in range(episodes):
            done = rollouts[number % len(rollouts)]
            name = f"episode-{number}"
            journal.started(name, done.task, done.trajectory.prompt_ids, phase="train", step=number // 64)
            for turn in done.trajectory.turns:
                started = time.perf_counter()
                journal.turn(name, turn)
                per_turn.append(time.perf_counter() - started)
                tokens += len(turn.action.token_ids) + len(turn.observation_ids)
            tokens += len(done.trajectory.prompt_ids)
            journal.ended(_named(done, name))
    columns = sum(path.stat().st_size for path in directory.glob("*.tokens"))
    text = sum(path.stat().st_size for path in directory.glob("*.jsonl"))
    return {
        "ms_per_turn": 1e3 * statistics.fmean(per_turn),
        "ms_per_turn_p99": 1e3 * statistics.quantiles(per_turn, n=100)[98],
        "bytes_per_token": columns / tokens,
        "tokens": float(tokens),
        "columns_mb": columns / 1e6,
        "text_mb": text / 1e6,
        "plain_ms_per_turn": plain(columns + text, len(per_turn), directory),
    }


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


def read(directory: Path) -> dict[str, float]:
    """In a process of its own, whose memory is nobody else's."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(directory)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _named(done: Rollout, name: str) -> Rollout:
    t = done.trajectory
    renamed = Trajectory(t.task_id, t.prompt_ids, t.turns, t.stop, t.answer, name)
    return Rollout(renamed, done.reward, done.task)


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
        small, whole = Path(directory) / "small", Path(directory) / "whole"
        write(small, rollouts, args.episodes // 10)
        found = write(whole, rollouts, args.episodes)
        found |= read(whole) | {"peak_mb_of_a_tenth": read(small)["peak_mb"]}
    found["index_s_per_100k"] = found["index_s"] * 100_000 / found["episodes"]
    for name, value in found.items():
        print(f"{name:22} {value:12.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    growth = found["peak_mb"] - found["peak_mb_of_a_tenth"]
    fine = found["ms_per_turn"] <= REQUIRED_MS and found["bytes_per_token"] <= REQUIRED_BYTES
    return 0 if fine and growth <= REQUIRED_GROWTH_MB else 1


if __name__ == "__main__":
    sys.exit(main())
