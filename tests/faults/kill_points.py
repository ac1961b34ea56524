"""FI-12: runs that are killed at seeded points and resumed, held bit for bit against one that was not.

`python -m tests.faults.kill_points [--points 20] [--processes 1 2] [--seed 0] [--term]` prints
a line for each: point, processes, settings, and whether weights, optimizer, metrics and the order of samples
are equal. It ends with 1 if any is not.
"""

from __future__ import annotations

import argparse
import atexit
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from sandbox_rl.journal import read_journal
from sandbox_rl.ledger import Sample, SampleEnd, Update, read_ledger
from sandbox_rl.runs.check import check_run
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.checkpoints import last_intact
from tests import prepared
from tests.faults.served import served
from tests.smoke.support import saved_model

REPOSITORY = Path(__file__).parents[2]
STEPS = 5
RECIPE: dict[str, Any] = {
    "prompts": [str(REPOSITORY / "recipes" / "prompts")],
    # Six tasks, two a step: the second pass begins with the fourth.
    "data": {
        "sources": [{"type": "reasoning_gym", "dataset": "chain_sum", "size": 6, "domain": "arithmetic"}],
        "held_out": 0,
    },
    "policy": {"type": "transformers", "max_batch": 1},  # what is sampled together differs in the last bits
    "episode": {"max_turns": 2, "max_tokens": 300, "turn_tokens": 8, "timeout_s": 120, "exec_timeout_s": 30},
    "reward": {"scorer": "exact", "workers": 1},
    "rollout": {"overlong": "score"},  # all of them use up their turns
    "evaluation": {"tasks": 0},
    "grpo": {
        "max_steps": STEPS,
        "num_generations": 2,
        "learning_rate": 1.0e-3,
        "activation_checkpointing": False,
        "save_steps": 1,
        "save_total_limit": 2,
    },
}
SETTINGS = {
    "plain": (),
    "curriculum and refill": ("curriculum.sampling=difficulty", "curriculum.refill_rounds=1"),
    "over-sampling": ("rollout.over_sample=0.5",),
    "two updates a generation": ("grpo.steps_per_generation=2", "grpo.max_steps=6", "grpo.save_steps=2"),
    "each generation twice": ("grpo.num_iterations=2", "grpo.max_steps=6", "grpo.save_steps=2"),
    "async": (),
}
ASYNC: dict[str, Any] = {
    "mode": "async",
    "policy": {"type": "vllm", "engine": "external"},
    "data": {
        "sources": [{"type": "table", "path": "rows.jsonl", "domain": "arithmetic", "scorer": "exact"}],
        "held_out": 0,
    },
    "episode": RECIPE["episode"] | {"turn_tokens": 100, "max_tokens": 1000},
    "grpo": RECIPE["grpo"] | {"token_budget": 2400},
}
"""Instead, for the setting `async`: its episodes come from a server without a model, which solves half of
them."""
SERVERS = ExitStack()
"""One for each start; they end with this process."""
atexit.register(SERVERS.close)
DEADLINE_S = 240.0
TIMES = re.compile(r"^perf/|time|second|runtime|memory|cut_after|_s$")
"""Names of metrics that say how long something took; no two runs have the same."""


@dataclass(frozen=True)
class Control:
    """Runs of one setting; the one that nothing happens to is made once."""

    directory: Path
    settings: str
    processes: int

    @property
    def name(self) -> str:
        return f"{self.settings.replace(' ', '-')}-{self.processes}"

    def start(self, run: str, point: str, rank: int, *more: str) -> list[prepared.Popen]:
        recipe = self.directory / f"{self.name}.yaml"
        if not recipe.exists():
            place = self.directory / "model"
            model = {"path": str(place) if place.exists() else saved_model(place), "dtype": "float32"}
            told = RECIPE | {"name": "x", "output_dir": str(self.directory / "runs"), "model": model}
            if self.settings == "async":
                told |= ASYNC
                rows = [{"id": f"t{n}", "prompt": f"{n} + 1 - {n}", "answer": "1"} for n in range(6)]
                (self.directory / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            recipe.write_text(yaml.safe_dump(told))
        command = ("tests.faults.killed_run", point, rank, self.directory / self.name, recipe, f"name={run}")
        if self.settings == "async":
            arguments = (*command, f"policy.base_urls=[{SERVERS.enter_context(served())}]", *more)
        else:
            size = f"grpo.per_device_train_batch_size={4 // self.processes}"
            arguments = (*command, size, *SETTINGS[self.settings], *more)
        if self.processes == 1:
            return [prepared.start(*arguments)]
        return prepared.ranks(self.processes, *arguments)

    def run(self, name: str) -> Path:
        return self.directory / "runs" / name

    @cached_property
    def state(self) -> dict[str, Any]:
        """What the uninterrupted run has come to.

        Raises:
            RuntimeError: it has learned nothing, so that nothing could differ.
        """
        finish(self.start(self.name, "none", 0))
        run = self.run(self.name)
        ends = [sample.end for update in read_ledger(run / "ledger.jsonl") for sample in _samples(update)]
        if ends.count(SampleEnd.USED) < len(ends) / 4:
            raise RuntimeError(f"{run}: {ends.count(SampleEnd.USED)} of {len(ends)} samples were used")
        return self.outcome(run)

    @cached_property
    def counts(self) -> list[Counter[str]]:
        """How often each kind of point is reached, by process."""
        _ = self.state
        paths = [self.directory / f"{self.name}-{rank}.json" for rank in range(self.processes)]
        return [Counter(json.loads(path.read_text())) for path in paths]

    def points(self, seed: int, count: int, how: str = "") -> list[tuple[str, int]]:
        """Points and the process that is killed there: all kinds in turn, at times drawn from the seed."""
        rng = random.Random(f"{seed} {self.name}")
        reached = [(kind, rank) for rank, found in enumerate(self.counts) for kind in sorted(found)]
        rng.shuffle(reached)
        chosen = [reached[i % len(reached)] for i in range(count)]
        return [(f"{kind}:{rng.randint(1, self.counts[rank][kind])}{how}", rank) for kind, rank in chosen]

    def outcome(self, run: Path) -> dict[str, Any]:
        """What two runs must have alike, by name."""
        return accounts(run) if self.settings == "async" else outcome(run)

    def differences(self, point: str, rank: int, *later: str) -> list[str]:
        """What differs from the control after a kill there and a resume; [] where nothing does.

        Args:
            later: points at which it is killed again, once in each of as many further starts.
        """
        name = f"{self.name}-{point.replace(' ', '-').replace(':', '-')}-{rank}"
        expected, more = self.state, []
        for killed_at in (point, *later):
            stop = finish if killed_at.endswith(":term") else partial(kill, rank=rank)
            stop(self.start(name, killed_at, rank, *more))
            # A launcher that saw the kill before the run had a directory starts the command as it was.
            more = ["--resume", name] if (self.run(name) / "history.jsonl").exists() else []
        finish(self.start(name, "none", rank, *more))
        found = self.outcome(self.run(name))
        return [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]


def finish(processes: list[prepared.Popen]) -> None:
    for process in processes:
        printed, _ = process.communicate(timeout=DEADLINE_S)
        if process.returncode:
            for other in processes:
                other.kill()
            raise RuntimeError(f"exit code {process.returncode}\n{printed}")


def kill(processes: list[prepared.Popen], rank: int) -> None:
    """Wait for the process that kills itself; the others are ended then, as a launcher does."""
    try:
        printed, _ = processes[rank].communicate(timeout=DEADLINE_S)
        if processes[rank].returncode != -signal.SIGKILL:
            raise RuntimeError(f"it was to be killed, but ended with {processes[rank].returncode}\n{printed}")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def accounts(run: Path) -> dict[str, Any]:
    """That each sample of an asynchronous run is accounted for once; its update depends on time."""
    checkpoint, damaged = last_intact(run / "checkpoints")
    assert checkpoint is not None, damaged
    ends = [
        (group.number, group.refill, place)
        for update in read_ledger(run / "ledger.jsonl")
        for group in update.groups
        for place in range(len(group.samples))
    ]
    behind = GroupProgress().restore(checkpoint)
    return {
        "violation": check_run(run).violation,
        "twice": [end for end, count in Counter(ends).items() if count > 1],
        "lost": sorted(behind - {number for number, *_ in ends}),
        "damaged": sorted(damaged.values()),
    }


def outcome(run: Path) -> dict[str, Any]:
    """What two runs must have alike, by name."""
    checkpoint, damaged = last_intact(run / "checkpoints")
    assert checkpoint is not None, damaged
    assert not damaged
    state: dict[str, Any] = {"checkpoint": checkpoint.name}
    kept = sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*"))
    state["checkpoints"] = kept
    for path in sorted(checkpoint.iterdir()):
        # These hold the run's name or place, and the ledger's lines their times.
        if path.name in ("complete.json", "training_args.bin", "README.md", "ledger.json"):
            continue
        state[path.name] = (
            timeless(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        )
    state["export"] = (run / "export" / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state["metrics"] = timeless(lines)
    state["samples"] = sorted(samples(run))
    state["ledger"] = [
        (update.number, group.number, group.task, group.refill, s.end, s.advantage, _place(s.episode))
        for update in read_ledger(run / "ledger.jsonl")
        for group in update.groups
        for s in group.samples
    ]
    state["violation"] = check_run(run).violation
    return state


def samples(run: Path) -> Iterator[tuple[Any, ...]]:
    """What each training episode of the journal was: its step and place, task, ids and reward."""
    for record in read_journal(run / "journal"):
        if record["phase"] == "train":
            turns = tuple(tuple(turn["token_ids"]) for turn in record["turns"])
            yield record["step"], _place(record["episode_id"]), record["task_id"], turns, record["reward"]


def _samples(update: Update) -> list[Sample]:
    return [sample for group in update.groups for sample in group.samples]


def _place(episode: str) -> str:
    """Of an episode in the run, however often it was sampled."""
    return re.sub(r"-r\d+$", "", episode)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if not TIMES.search(key)}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--settings", nargs="+", default=[name for name in SETTINGS if name != "async"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--term", action="store_true", help="SIGTERM instead of SIGKILL")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="kill-points-"))
    failed = 0
    print(f"{'point':22} {'process':8} {'settings':22} {'seconds':8} equal")
    for processes in options.processes:
        for place, settings in enumerate(options.settings):
            if settings == "async" and processes > 1:
                continue
            control = Control(directory, settings, processes)
            share = options.points // len(options.settings) + (place < options.points % len(options.settings))
            for point, rank in control.points(options.seed, share, ":term" if options.term else ""):
                started = time.monotonic()
                try:
                    said = ", ".join(sorted(control.differences(point, rank))) or "yes"
                except (RuntimeError, AssertionError) as error:
                    said = f"{type(error).__name__}: {error}"
                failed += said != "yes"
                where = f"{rank + 1} of {processes}"
                seconds = time.monotonic() - started
                print(f"{point:22} {where:8} {settings:22} {seconds:8.1f} {said}", flush=True)
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
