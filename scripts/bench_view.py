"""What the page of `sandbox-rl view` costs on a run of many episodes: each of its answers, and the memory.

Makes a run's directory, has its index made, and asks in a process of its own what the page asks, with the
index there already, as on every later look. Fails where an answer takes longer than its limit, or the
process holds more than 150 MB.

    python scripts/bench_view.py [--episodes 1000000] [--keep DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson

from sandbox_rl.journal.columns import pack

LIMITS = {
    "first screen": 2.0,
    "list, its start": 1.0,
    "list, its middle": 1.0,
    "list, its end": 1.0,
    "list by reward, its end": 1.0,
    "list of a domain by length": 1.0,
    "list by step and stop reason": 1.0,
    "list with a text": 1.0,
    "list by own SQL": 1.0,
    "filters": 1.0,
    "one episode": 1.0,
    "its group": 1.0,
    "its task": 1.0,
    "its timeline": 1.0,
}
MEMORY_MB = 150.0

ASK = """
import json, sys, time
from pathlib import Path
from sandbox_rl.view.api import answer, to_json
from sandbox_rl.view.opened import OpenRun
path, cache, episodes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
middle, end, id = str(episodes // 2), str(episodes - 100), f"train-{episodes // 16:06d}-0003"
asked = {
  "first screen": ("overview", {}),
  "list, its start": ("episodes", {}),
  "list, its middle": ("episodes", {"offset": middle}),
  "list, its end": ("episodes", {"offset": end}),
  "list by reward, its end": ("episodes", {"sort": "reward", "desc": "1", "offset": end}),
  "list of a domain by length": ("episodes", {"domain": "math", "sort": "sampled", "desc": "1"}),
  "list by step and stop reason": ("episodes", {"step": "77", "stop": "max_tokens"}),
  "list with a text": ("episodes", {"text": "needle"}),
  "list by own SQL": ("episodes", {"sql": "turns > 18 AND reward = 1"}),
  "filters": ("choices", {}),
  "one episode": ("episode", {"id": id}),
  "its group": ("group", {"id": id}),
  "its task": ("task", {"task_id": "task-77"}),
  "its timeline": ("timeline", {"step": "77"}),
}
found = {}
started = time.perf_counter()
with OpenRun(path, cache) as run:
    run.refresh()
    assert not run.behind
    found["open"] = time.perf_counter() - started
    for name, (question, query) in asked.items():
        started = time.perf_counter()
        to_json(answer([run], question, query))
        found[name] = time.perf_counter() - started + (found["open"] if name == "first screen" else 0)
own = [line for line in open("/proc/self/status") if line.startswith("VmRSS")]
found["memory_mb"] = int(own[0].split()[1]) / 1024
print(json.dumps(found))
"""


def make(directory: Path, episodes: int) -> None:
    """A journal whose episodes share their tokens, groups of eight, 64 episodes per update; and metrics."""
    draw = random.Random(0)
    (directory / "journal").mkdir(parents=True)
    content, columns = pack([list(range(500))], (), 0)
    none = {"at": 0, "lengths": [], "crc": 0, "logprobs": 0}
    where = {"at": columns.at, "lengths": columns.lengths, "crc": columns.crc, "logprobs": None}
    (directory / "journal" / "0000-0000.tokens").write_bytes(content)
    at, now = 0, 1_795_000_000.0
    with (directory / "journal" / "0000-0000.jsonl").open("wb") as file:
        for number in range(episodes):
            id, now = f"train-{number // 8:06d}-{number % 8:04d}", now + 0.01
            about = {"task_id": f"task-{number // 8 % 20_000}", "domain": draw.choice(("math", "qa", "code"))}
            begun = {"event": "started", "episode_id": id, **about, "time": now, "seed": number}
            line = orjson.dumps({**begun, "phase": "train", "step": number // 64, "columns": where}) + b"\n"
            reward = float(draw.random() < 0.5)
            ended = {"event": "ended", "episode_id": id, "prev": at, "turns": 0, "time": now + 5}
            stop = draw.choice(("submitted", "submitted", "max_turns", "max_tokens"))
            ended |= {"stop": stop, "fault": "", "reward": reward, "reward_parts": {"math": reward}}
            text = (
                "a needle in it" if number == episodes // 3 else f"{draw.random():.12f} is what it comes to"
            )
            ended |= {
                "answer": {"status": "ok", "text": text},
                "reward_detail": "equal",
                "scoring_seconds": 0.1,
            }
            ended |= {"masked": False, "seconds": 5.0, "sampled": draw.randrange(50, 9_000), "observed": 100}
            ended |= {"generation_seconds": 4.0, "execution_seconds": 1.0, "turns": draw.randrange(1, 20)}
            end = orjson.dumps({**ended, "columns": none}) + b"\n"
            file.write(line + end)
            at += len(line) + len(end)
    with (directory / "metrics.jsonl").open("wb") as file:
        for step in range(1, episodes // 64 + 1):
            values = {f"metric/{n}": draw.random() for n in range(40)}
            row = {"step": step, "time": 1_795_000_000.0 + step, "loss": 0.1, "reward/mean": 0.5, **values}
            file.write(orjson.dumps(row) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="make the run there and keep it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        run, cache = place / "run", place / "cache"
        if not run.exists():
            make(run, options.episodes)
        from sandbox_rl.view.opened import OpenRun

        started = time.perf_counter()
        with OpenRun(run, cache) as opened:
            opened.refresh(float("inf"))
        print(f"index of {options.episodes:,} episodes: {time.perf_counter() - started:.1f} s")
        command = [sys.executable, "-c", ASK, str(run), str(cache), str(options.episodes)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    late = []
    for name, limit in LIMITS.items():
        late += [name] if found[name] > limit else []
        print(f"{name:<30} {found[name]:8.3f} s   at most {limit:g}")
    print(f"{'memory':<30} {found['memory_mb']:8.0f} MB  at most {MEMORY_MB:g}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if late or found["memory_mb"] > MEMORY_MB:
        sys.exit(f"bench_view: over its limit: {', '.join(late) or 'memory'}")


if __name__ == "__main__":
    main()
