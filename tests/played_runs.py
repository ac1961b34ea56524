"""Small runs with everything but a model: real schedules, journals, ledgers and checkpoints of both modes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.config.load import load_recipe
from sandbox_rl.journal import Journal, JournalObserver
from sandbox_rl.ledger import Ledger, Update
from sandbox_rl.rollout.groups import first_groups
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.rollout.order import of_group
from sandbox_rl.rollout.over_sampling import OverSampling
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.runs.resume import Earlier, begin, sizes_of
from sandbox_rl.training.asynchronous.admission import Admission
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.checkpoints import last_complete, mark_complete
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.generation_ledger import GenerationLedger
from sandbox_rl.training.generations import Generations
from sandbox_rl.training.group_rollouts import GroupRollouts
from sandbox_rl.training.groups import advantages, group_requests
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.samples import finished_group
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    Reward,
    Rollout,
    StopReason,
    Task,
    Trajectory,
    Turn,
)

TASKS = [Task(f"t{i}", "?", "42") for i in range(7)]
SIZE, GROUPS, SEED = 4, 2, 3
RECIPE = {
    "name": "played",
    "seed": SEED,
    "data": {"sources": [{"type": "reasoning_gym", "dataset": "chain_sum", "size": 7, "domain": "a"}]},
}


def played(request: EpisodeRequest, version: int) -> Rollout:
    """An episode that follows from its seed: its reward, its turns, and whether something went wrong."""
    draw = random.Random(request.seed)
    turns = tuple(
        Turn(
            Action((5, 6, 7), (-0.5, -0.25, -1.0), "stop", weight_version=version),
            observation_ids=(8, 9) if last else (),
        )
        for last in (True,) * draw.randrange(2) + (False,)
    )
    fate = draw.random()
    reward = Reward(float(draw.random() < 0.5))
    if fate < 0.05:
        reward, turns = Reward(None), ()
    elif fate < 0.1:
        reward = Reward(None, masked=True)
    elif fate < 0.13:
        turns = ()
    stop = StopReason.SUBMITTED if reward.value is not None else StopReason.INFRA_FAULT
    stop = StopReason.MAX_TOKENS if reward.masked else stop
    answer = Answer(AnswerStatus.OK, "1")
    trajectory = Trajectory(request.task.id, (1, 2, 3), turns, stop, answer, request.id)
    return Rollout(trajectory, reward, request.task)


class PlayedEngine:
    """Plays requests; some take longer than others."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.asked: list[str] = []
        self.version = 0

    async def run(self, requests: Sequence[EpisodeRequest], observer: Any = None) -> list[Rollout]:
        return [await self._one(request, observer) for request in requests]

    async def run_groups(self, groups: Any, *, keep: int, observer: Any = None) -> Any:
        return await first_groups(groups, lambda request: self._one(request, observer, wait=True), keep=keep)

    async def _one(self, request: EpisodeRequest, observer: Any, *, wait: bool = False) -> Rollout:
        self.asked.append(request.id)
        if wait:
            await asyncio.sleep(random.Random(request.seed + 1).choice((0.0, 0.0, 0.02)))
        rollout = played(request, self.version)
        observer.rolled_out(request, rollout)
        return rollout


def _begun(
    directory: Path, recipe: dict[str, Any], args: Any, *, resume: bool
) -> tuple[History, Path | None]:
    """The history of this start, and the checkpoint that it goes on from."""
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(directory)} | recipe))
    run, earlier, checkpoint = RunDirectory(directory / "played"), None, None
    if resume:
        checkpoint = last_complete(run.checkpoints)
        earlier = Earlier(run, History.read(run), checkpoint, {})
    else:
        run = RunDirectory.new(directory, "played")
    history, replaced = begin(
        run, earlier, load_recipe(path), tasks=TASKS, sizes=sizes_of(args), prompts={}, steps=99, processes=1
    )
    if replaced:
        with Journal(run.journal, start=history.starts - 1, process=1) as journal:
            journal.replaced(replaced)
    return history, checkpoint


def _save(run: RunDirectory, step: int, *parts: Any) -> None:
    checkpoint = run.checkpoints / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for part in parts:
        part(checkpoint)
    mark_complete(checkpoint)


def sync_run(
    directory: Path,
    updates: int,
    *,
    resume: bool = False,
    save_at: Sequence[int] = (),
    rhythm: tuple[int, int] = (1, 1),
    refill: int = 0,
    over_sample: float = 0.0,
    lost_in: int | None = None,
) -> Path:
    """A run of so many updates, or one more start of it; `lost_in`: the update in which the process dies."""
    every, accumulation = rhythm
    args = SimpleNamespace(
        num_generations=SIZE,
        steps_per_generation=every,
        num_iterations=1,
        gradient_accumulation_steps=accumulation,
        generation_batch_size=GROUPS * SIZE,
    )
    recipe = {
        "curriculum": {"refill_rounds": refill},
        "rollout": {"over_sample": over_sample},
        "grpo": {"scale_rewards": "group"},
        "estimator": "trl",
    }
    history, checkpoint = _begun(directory, recipe, args, resume=resume)
    run, done = history.run, 0 if checkpoint is None else int(checkpoint.name.split("-")[1])
    settings = CurriculumSettings(refill_rounds=refill)
    curriculum = Curriculum({t.id: "a" for t in TASKS}, settings, seed=SEED) if refill else None
    over_sampling = OverSampling(over_sample) if over_sample else None
    states = [part for part in (curriculum, over_sampling) if part is not None]
    ledger = Ledger(run.ledger)
    written = GenerationLedger(Generations.of(args), ledger)
    engine = PlayedEngine()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(run.journal, start=history.starts - 1))
        loop = stack.enter_context(LoopThread())
        for part in states if checkpoint is not None else ():
            part.restore(checkpoint)
        func = GroupRollouts(
            engine,
            loop,
            {task.id: task for task in TASKS},
            estimator="trl",
            seed=SEED,
            eos_id=0,
            curriculum=curriculum,
            over_sampling=over_sampling,
            journal=journal,
            ledger=written,
            again=history.again,
        )
        state = SimpleNamespace(global_step=done)
        trainer = SimpleNamespace(num_generations=SIZE, args=args, state=state)
        for _ in range(done, updates):
            for place in range(accumulation):
                if (state.global_step * accumulation + place) % every == 0:
                    engine.version = state.global_step
                    _weigh(written, func([""] * (GROUPS * SIZE), trainer))
            if state.global_step + 1 == lost_in:
                return run.path
            state.global_step += 1
            written.on_step_end(None, state, None)
            if state.global_step in save_at:
                _save(run, state.global_step, ledger.commit, *(part.save for part in states))
    history.with_event("finished", updates)
    return run.path


def _weigh(written: GenerationLedger, rows: dict[str, list[Any]]) -> None:
    """What the trainer makes of its rows."""
    groups = [rows["outcome"][i : i + SIZE] for i in range(0, len(rows["outcome"]), SIZE)]
    weights = [advantage or 0.0 for group in groups for advantage in advantages(group, "grpo")]
    written.weighed(weights, [sum(mask) > 0 for mask in rows["env_mask"]])


def async_run(
    directory: Path,
    updates: int,
    *,
    resume: bool = False,
    save_at: Sequence[int] = (),
    refill: int = 0,
    max_staleness: int = 2,
    lost_in: int | None = None,
) -> Path:
    """The same with `mode: async`; the groups of odd numbers arrive an update later."""
    args = SimpleNamespace(num_generations=SIZE)
    recipe = {
        "mode": "async",
        "policy": {"type": "vllm"},
        "curriculum": {"refill_rounds": refill},
        "grpo": {"max_staleness": max_staleness},
    }
    history, checkpoint = _begun(directory, recipe, args, resume=resume)
    run, step = history.run, 0 if checkpoint is None else int(checkpoint.name.split("-")[1])
    progress, ledger = GroupProgress(), Ledger(run.ledger)
    if checkpoint is not None:
        progress.restore(checkpoint)
    admission = Admission(progress, max_staleness=max_staleness, tokens=60, at_once=4)
    with Journal(run.journal, start=history.starts - 1, process=9000) as journal:
        observer = JournalObserver(journal, lambda _: {"phase": "train", "step": step})
        late: list[Any] = []
        while step < updates:
            arriving, late = late, []
            for number in admission.admit(step, step):
                task = of_group(TASKS, number, seed=SEED)
                requests = group_requests(task, number, seed=SEED, size=SIZE, again=history.starts - 1)
                rollouts = [played(request, step) for request in requests]
                for request, rollout in zip(requests, rollouts, strict=True):
                    observer.rolled_out(request, rollout)
                group = finished_group(rollouts, number=number, kind="rloo", leave_out_equal=refill > 0)
                (late if number % 2 else arriving).append(group)
            for group in arriving:
                admission.arrive(group)
            while not admission.ready(step) and late:
                admission.arrive(late.pop(0))
            if not admission.ready(step):
                continue
            admission.compose(step)
            if step + 1 == lost_in:
                return run.path
            step += 1
            ledger.write(Update(step, 0.0, tuple(progress.finish_update())))
            if step in save_at:
                _save(run, step, ledger.commit, progress.save)
    history.with_event("finished", updates)
    return run.path
