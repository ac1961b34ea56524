"""What is drawn and sampled follows from the number of the generation: resumed, and on several processes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sandbox_rl.journal import read_journal
from sandbox_rl.ledger import Ledger, SampleEnd, read_ledger
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.runs.check import check_run
from sandbox_rl.training.checkpoints import is_complete, last_complete
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.generations import GenerationLedger, Generations, StopAtBorders
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.groups import advantages
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from sandbox_rl.types import Task
from tests import prepared
from tests.smoke.support import EOS, make_rollout, make_trainer, saved_model

REPOSITORY = Path(__file__).parents[2]
TASKS = {f"t{i}": Task(f"t{i}", "?", "42") for i in range(3)}
SIZE = 2


class Noted:
    """An engine that plays nothing and notes what it was asked for; rewards follow from the seeds."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.asked = []

    async def run(self, requests, observer=None):
        self.asked += [(r.id, r.task.id, r.seed) for r in requests]
        return [played(r) for r in requests]


def played(request):
    rollout = make_rollout(request.task.id, float(request.seed % 3 == 0), seed=request.seed)
    return replace(rollout, trajectory=replace(rollout.trajectory, episode_id=request.id))


def asked(directory, *, steps, resume=None, stop_after=None, curriculum=None, **fields):
    """What training over three tasks asks for; `stop_after` a step a stop is wanted, as after a signal."""
    engine = Noted()

    class StopWanted(StopAtBorders):
        def on_step_end(self, args, state, control, **kwargs):
            if stop_after is not None and state.global_step >= stop_after:
                control.should_save = control.should_training_stop = True
            super().on_step_end(args, state, control, **kwargs)

    fields = {"per_device_train_batch_size": 4, "num_generations": SIZE, "save_strategy": "no"} | fields
    accumulation, every = fields["gradient_accumulation_steps"], fields["steps_per_generation"]
    rhythm = Generations(every * fields.get("num_iterations", 1), accumulation, every * 4 // SIZE)
    drawer = None
    if curriculum:
        drawer = Curriculum(dict.fromkeys(TASKS, "x"), CurriculumSettings(**curriculum), seed=3)
        if resume is not None:
            drawer.restore(resume)
    written = GenerationLedger(rhythm, Ledger(directory / "ledger.jsonl"))
    with LoopThread() as loop:
        func = GroupRollouts(
            engine,
            loop,
            TASKS,
            estimator="trl",
            seed=3,
            eos_id=EOS,
            curriculum=drawer,
            ledger=written,
        )
        trainer = make_trainer(
            directory,
            func,
            outcome_reward,
            cls=SandboxGRPOTrainer,
            tasks=[str(i) for i in range(rhythm.count(steps) * rhythm.groups)],
            parts={"ledger": written, "saved": [] if drawer is None else [drawer.save]},
            callbacks=[StopWanted(rhythm, len(TASKS))],
            max_steps=steps,
            **fields,
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return engine.asked, trainer


RHYTHMS = {
    "one to one": {"gradient_accumulation_steps": 1, "steps_per_generation": 1},
    "two generations a step": {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "two steps a generation": {"gradient_accumulation_steps": 1, "steps_per_generation": 2},
    "each generation twice": {
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_iterations": 2,
    },
}


def check_ledger(directory, whole, rhythm):
    """Each group stands in the line of the last update that was taken from it, with what TRL made of it."""
    left = {name: (task, float(seed % 3 == 0)) for name, task, seed in whole}
    written = list(read_ledger(directory / "ledger.jsonl"))
    assert [update.number for update in written] == list(range(1, 7))
    for update in written:
        for group in update.groups:
            last = (group.number // rhythm.groups + 1) * rhythm.every / rhythm.accumulation
            assert update.number == math.ceil(last)
            tasks, rewards = zip(*(left.pop(sample.episode) for sample in group.samples), strict=True)
            assert tasks == (group.task,) * SIZE
            ends = {sample.end for sample in group.samples}
            if ends == {SampleEnd.REFILLED}:
                assert {sample.advantage for sample in group.samples} == {None}
                continue
            assert ends == {SampleEnd.USED if len(set(rewards)) > 1 else SampleEnd.EQUAL_REWARDS}
            expected = advantages(rewards, "grpo")
            assert [s.advantage for s in group.samples] == pytest.approx(expected, abs=1e-5)
    assert not left, "every group that was sampled ends"


def without_times(path):
    return [replace(update, time=0.0) for update in read_ledger(path)]


@pytest.mark.parametrize("curriculum", [None, {"sampling": "difficulty", "refill_rounds": 1}])
@pytest.mark.parametrize("rhythm", RHYTHMS.values(), ids=RHYTHMS)
def test_a_resumed_run_asks_for_what_the_uninterrupted_one_asks_for(tmp_path, rhythm, curriculum):
    """past the first passes over three tasks. A stop that is wanted in the middle of a generation waits."""
    fields = {**rhythm, "steps": 6, "curriculum": curriculum}
    whole, trainer = asked(tmp_path / "whole", **fields)
    assert len({name for name, *_ in whole}) == len(whole)
    assert len({seed for *_, seed in whole}) == len(whole)
    assert trainer.state.global_step == 6
    first, _ = asked(tmp_path / "parts", stop_after=3, **fields)
    checkpoint = last_complete(tmp_path / "parts")
    period = Generations(
        rhythm["steps_per_generation"] * rhythm.get("num_iterations", 1),
        rhythm["gradient_accumulation_steps"],
        1,
    ).period
    assert int(checkpoint.name.split("-")[1]) == 3 + 3 % period
    second, resumed = asked(tmp_path / "parts", resume=checkpoint, **fields)
    assert first + second == whole
    check_ledger(tmp_path / "whole", whole, Generations.of(trainer.args))
    (tmp_path / "parts" / "ledger.jsonl").rename(tmp_path / "ledger.jsonl")
    assert without_times(tmp_path / "ledger.jsonl") == without_times(tmp_path / "whole" / "ledger.jsonl")
    if curriculum is None:
        groups = [name for _, name, _ in whole[::SIZE]]
        passes = [groups[i : i + 3] for i in range(0, len(groups) - 2, 3)]
        assert len(passes) >= 2
        assert all(sorted(part) == sorted(TASKS) for part in passes)
        assert len(set(map(tuple, passes))) > 1
        assert resumed.state.epoch == pytest.approx(len(groups) / 3)


def test_a_resumed_run_that_has_all_its_steps_trains_none(tmp_path):
    fields = {**RHYTHMS["one to one"], "steps": 2, "save_strategy": "steps", "save_steps": 1}
    asked(tmp_path, **fields)
    again, trainer = asked(tmp_path, resume=tmp_path / "checkpoint-2", **fields)
    assert (again, trainer.state.global_step) == ([], 2)


RECIPE = {
    "name": "order",
    "prompts": [str(REPOSITORY / "recipes" / "prompts")],
    "data": {
        "sources": [
            {
                "type": "reasoning_gym",
                "dataset": "chain_sum",
                "size": 13,
                "domain": "arithmetic",
                "params": {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3},
            }
        ],
        "held_out": 0.1,
    },
    "episode": {"max_turns": 2, "max_tokens": 200, "turn_tokens": 24, "timeout_s": 600, "exec_timeout_s": 60},
    "rollout": {"concurrency": 16, "retries": 0},
    "reward": {"scorer": "exact", "workers": 1},  # a worker that has reasoning-gym takes seconds to start
    "evaluation": {"tasks": 0},
    "grpo": {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "num_generations": 2,
        "learning_rate": 1.0e-6,
        "lr_scheduler_type": "constant",
        "activation_checkpointing": False,
        "save_steps": 1,
        "save_total_limit": 10,
    },
}
DEADLINE_S = 560


def start(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    return prepared.Popen(
        [sys.executable, "-m", "sandbox_rl.cli", "train", str(recipe), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    printed, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, printed


def sampled(run: Path) -> dict[int, list]:
    """Step → its episodes: task and sampled ids, in the order of the groups' numbers and their samples."""
    steps: dict[int, list] = {}
    for record in read_journal(run / "journal"):
        turns = tuple(tuple(turn["token_ids"]) for turn in record["turns"])
        place = re.sub(r"-r\d+$", "", record["episode_id"])
        steps.setdefault(record["step"], []).append((place, record["task_id"], turns))
    return {step: [(task, turns) for _, task, turns in sorted(found)] for step, found in steps.items()}


def holds(run: Path, steps: int = 6) -> None:
    """Every sample is accounted for."""
    found = check_run(run)
    assert (found.violation, found.updates) == (None, steps), found


def only_unfinished_again(run: Path) -> None:
    """The second start samples no episode that had ended in the first."""
    started: dict[str, set[str]] = {"0000": set(), "0001": set()}
    ended: set[str] = set()
    for path in sorted((run / "journal").glob("*.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        names = {e: re.sub(r"-r\d+$", "", e) for event in events if (e := event.get("episode_id"))}
        train = [event for event in events if event.get("phase") == "train"]
        started[path.stem[:4]] |= {names[e["episode_id"]] for e in train if e["event"] == "started"}
        if path.stem.startswith("0000"):
            ended |= {names[e["episode_id"]] for e in train if e["event"] == "ended"}
    assert ended
    assert not started["0001"] & ended, "sampled again, though it had ended"


@pytest.mark.slow
def test_killed_after_step_4_and_on_two_processes_it_trains_on_the_same(tmp_path):
    """Twelve tasks, four groups a step: the second pass begins at step 3."""
    path, runs = tmp_path / "r.yaml", tmp_path / "runs"
    model = {"path": saved_model(tmp_path / "model"), "dtype": "float32"}
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(runs), "model": model}))
    finish(start(path))
    whole = sampled(runs / "order")
    assert sorted(whole) == list(range(6))

    killed = start(path, "name=killed")
    deadline = time.monotonic() + DEADLINE_S
    while not is_complete(runs / "killed" / "checkpoints" / "checkpoint-4"):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    finish(start(path, "name=killed", "--resume"))
    assert sampled(runs / "killed") == whole
    holds(runs / "order")
    holds(runs / "killed")
    only_unfinished_again(runs / "killed")
    steps = [json.loads(line) for line in (runs / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3, 4, 5, 6]

    arguments = ("sandbox_rl.cli", "train", path, "name=two", "grpo.max_steps=4")
    for process in prepared.ranks(2, *arguments, "grpo.per_device_train_batch_size=4"):
        finish(process)
    holds(runs / "two", steps=4)
    two = sampled(runs / "two")
    assert {step: [task for task, _ in rows] for step, rows in two.items()} == {
        step: [task for task, _ in whole[step]] for step in range(4)
    }
    assert two[0] == whole[0]  # later ones differ by the rounding of the averaged gradient


@pytest.mark.slow
def test_killed_on_one_process_it_goes_on_with_two(tmp_path):
    """The files of the second start have names that none of the first has, on both processes."""
    path, run = tmp_path / "r.yaml", tmp_path / "runs" / "grown"
    model = {"path": saved_model(tmp_path / "model"), "dtype": "float32"}
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(run.parent), "model": model, "name": "grown"}))
    killed = start(path, "grpo.max_steps=4")
    deadline = time.monotonic() + DEADLINE_S
    while not is_complete(run / "checkpoints" / "checkpoint-1"):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    arguments = ("sandbox_rl.cli", "train", path, "--resume", "grpo.max_steps=4")
    for process in prepared.ranks(2, *arguments, "grpo.per_device_train_batch_size=4"):
        finish(process)
    names = sorted(file.stem for file in (run / "journal").glob("*.jsonl"))
    assert names == ["0000-0000", "0001-0000", "0001-0001"]
    holds(run, steps=4)
    only_unfinished_again(run)
    events = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [e["processes"] for e in events if "processes" in e] == [1, 2]
