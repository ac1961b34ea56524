"""Whether asynchronous updates come out bit for bit when they are computed again from a run's records.

Trains a tiny model asynchronously on episodes of random tokens that arrive when they please, from threads
that sleep for random times, so that no two runs of this script are alike. Then what
`sandbox-rl replay RUN --to-step N` does computes it again from the run's journal and `compositions.jsonl`.
Fails if a bit of the weights differs.

    python scripts/bench_replay.py [--updates 50] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml
from datasets import Dataset

from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import resolved
from sandbox_rl.display import Silent
from sandbox_rl.journal import Journal
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.replay.updates import replay_training
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.runs.plan import RunModel, RunPlan
from sandbox_rl.training.asynchronous.compositions import FILE, CompositionLog, read_compositions
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from sandbox_rl.training.groups import group_requests
from sandbox_rl.training.publication.base import UnsentWeights
from sandbox_rl.training.samples import FinishedGroup, finished_group
from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from sandbox_rl.types import Action, Answer, AnswerStatus, Reward, Rollout, StopReason, Task, Trajectory, Turn

SIZE = 4
ROW_TOKENS = 200


class Rollouts:
    """A rollout worker whose groups end after random times."""

    def __init__(self, weights: UnsentWeights, journal: Journal, end: int) -> None:
        self.rollout_buffer: queue.Queue[FinishedGroup] = queue.Queue()
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self._weights, self._journal, self._end = weights, journal, end
        self._timers: list[threading.Timer] = []

    def start(self) -> None: ...

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join()

    def check_health(self, stale_after_s: float) -> None: ...

    def admit(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            timer = threading.Timer(
                random.expovariate(8), self._finish, [number, self._weights.version.value]
            )
            timer.daemon = True
            self._timers.append(timer)
            timer.start()

    def _finish(self, number: int, version: int) -> None:
        group = [self._rollout(number, index, version) for index in range(SIZE)]
        for rollout in group:
            self._journal.ended(rollout, phase="train", step=version)
        self.rollout_buffer.put(finished_group(group, number=number, kind="rloo"))

    def _rollout(self, number: int, index: int, version: int) -> Rollout:
        noise = random.Random(number * SIZE + index)
        task = Task(str(number), "?", "1")
        turns = []
        for last in (False, True):
            ids = (*(noise.randrange(10, 200) for _ in range(noise.randrange(1, 12))), self._end)
            action = Action(ids, tuple(noise.gauss(-5.6, 0.6) for _ in ids), "stop", version)
            turns.append(Turn(action, observation_ids=() if last else (11, 12, 13)))
        trajectory = Trajectory(
            task_id=task.id,
            prompt_ids=tuple(random.Random(number).randrange(10, 200) for _ in range(8)),
            turns=tuple(turns),
            stop=StopReason.SUBMITTED,
            answer=Answer(AnswerStatus.OK, "1"),
            episode_id=group_requests(task, number, seed=0, size=SIZE)[index].id,
        )
        return Rollout(trajectory, Reward(float(noise.random() < 0.5)), task)


def trained(directory: Path, updates: int) -> Path:
    """A run of so many updates."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    config = json.loads((directory / "model" / "config.json").read_text())
    (directory / "model" / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 1 << 14})
    )
    (directory / "rows.jsonl").write_text('{"prompt": "?", "answer": "1"}\n')
    recipe_path = directory / "r.yaml"
    recipe_path.write_text(
        yaml.safe_dump(
            {
                "name": "r",
                "output_dir": str(directory / "runs"),
                "mode": "async",
                "model": {"path": str(directory / "model"), "dtype": "float32"},
                "policy": {"type": "vllm"},
                "data": {
                    "sources": [{"type": "table", "path": "rows.jsonl", "scorer": "exact"}],
                    "held_out": 0.0,
                },
                "episode": {"max_tokens": 4000},
                "grpo": {
                    "max_steps": updates,
                    "num_generations": SIZE,
                    "learning_rate": 1e-3,
                    "save_steps": updates,
                },
            }
        )
    )
    recipe = load_recipe(recipe_path)
    run = RunDirectory.new(directory / "runs", "r")
    run.recipe.write_text(resolved(recipe))
    History(run, ()).with_event("started", 0, processes=1)
    args = training_arguments(
        recipe,
        run.checkpoints,
        longest=RunModel.of(RunPlan.of(recipe, base_dir=directory), recipe.model).longest,
    )
    args.token_budget = ROW_TOKENS  # several groups an update, several rows
    weights, progress = UnsentWeights(served=True), GroupProgress()
    with Journal(run.journal) as journal:
        SandboxAsyncTrainer(
            model=recipe.model.path,
            args=args,
            at_once=8,
            progress=progress,
            train_dataset=Dataset.from_dict({"prompt": ["?"]}),
            processing_class=tokenizer,
            rollout_worker=Rollouts(weights, journal, tokenizer.eos_token_id),
            weights=weights,
            compositions=CompositionLog(run.path / FILE),
        ).train()
    return run.path


def main() -> int:
    """Train, compute again, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        run = trained(Path(scratch), options.updates)
        middle = time.monotonic()
        found = replay_training(run, options.updates, display=Silent())
        updates = read_compositions(run / FILE).values()
        samples = sum(len(row) for update in updates for row in update.rows)
        arrived = [group for update in updates for group, _ in update.arrived]
        figures = {
            "updates": options.updates,
            "samples": samples,
            "groups that overtook another": sum(a > b for a, b in pairwise(arrived)),
            "bytes per sample": round((run / FILE).stat().st_size / samples, 1),
            "seconds of training": round(middle - started, 1),
            "seconds of replay": round(time.monotonic() - middle, 1),
            "tensors that differ": len(found.differing),
            "sha256": found.replayed,
            "bit-equal": found.recorded == found.replayed,
        }
    for name, value in figures.items():
        print(f"{name:30} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["bit-equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
