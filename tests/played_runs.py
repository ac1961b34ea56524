"""Small runs with everything but a model: real schedules, journals, ledgers and checkpoints of both modes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import UserError
from sandbox_rl.journal import Journal, JournalObserver
from sandbox_rl.ledger import Ledger, Update
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.rollout.order import of_group
from sandbox_rl.rollout.over_sampling import OverSampling
from sandbox_rl.rollout.slots import first_groups
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.runs.leftovers import Leftovers
from sandbox_rl.runs.resume import Earlier, begin, sizes_of
from sandbox_rl.training.asynchronous.progress import Admission, GroupProgress
from sandbox_rl.training.checkpoints import last_complete, mark_complete
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.generations import GenerationLedger, Generations
from sandbox_rl.training.group_rollouts import GroupRollouts
from sandbox_rl.training.groups import advantages, group_requests
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.reuse import recorded_groups
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

TASKS = [Task(f"t{i}", "?", "42", domain="ab"[i % 2]) for i in range(7)]
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


class Dead(UserError):
    """The process is gone: nothing retries or counts it."""


class PlayedEngine:
    """Plays requests; some take longer than others."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.asked: list[str] = []
        self.version = 0
        self.die_at: int | None = None
        """Episodes after which the process dies in the middle of a generation."""

    async def run(
        self, requests: Sequence[EpisodeRequest], observer: Any = None, finished: Any = lambda _: None
    ) -> list[Rollout]:
        return [await self._one(request, observer, finished) for request in requests]

    async def run_groups(
        self, groups: Any, *, keep: int, observer: Any = None, finished: Any = lambda _: None
    ) -> Any:
        return await first_groups(
            groups, lambda request: self._one(request, observer, finished, wait=True), keep=keep
        )

    async def _one(
        self, request: EpisodeRequest, observer: Any, finished: Any, *, wait: bool = False
    ) -> Rollout:
        if (done := finished(request)) is not None:
            return done
        if self.die_at is not None and len(self.asked) >= self.die_at:
            raise Dead
        self.asked.append(request.id)
        if wait:
            await asyncio.sleep(random.Random(request.seed + 1).choice((0.0, 0.0, 0.02)))
        rollout = played(request, self.version)
        observer.rolled_out(request, rollout)
        return rollout


def _begun(
    directory: Path, recipe: dict[str, Any], args: Any, *, resume: bool
) -> tuple[History, Leftovers, Path | None]:
    """What this start begins with, and the checkpoint that it goes on from."""
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(directory)} | recipe))
    run, earlier, checkpoint = RunDirectory(directory / "played"), None, None
    if resume:
        checkpoint = last_complete(run.checkpoints)
        earlier = Earlier(run, History.read(run), checkpoint, {}, {})
    else:
        run = RunDirectory.new(directory, "played")
    loaded = load_recipe(path)
    sizes = sizes_of(loaded, args)
    history, left = begin(run, earlier, loaded, tasks=TASKS, sizes=sizes, prompts={}, steps=99, processes=1)
    if left.replaced:
        with Journal(run.journal, start=history.starts - 1, process=1) as journal:
            journal.replaced(left.replaced)
    return history, left, checkpoint


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
    curriculum: Mapping[str, Any] | None = None,
    over_sample: float = 0.0,
    lost_in: int | None = None,
    die_at: int | None = None,
    asked: list[str] | None = None,
) -> Path:
    """A run of so many updates, or one more start of it.

    Args:
        lost_in: the update in which the process dies.
        die_at: how many episodes it has sampled when it dies instead.
        asked: gets the ids of the episodes that this start samples.
    """
    every, accumulation = rhythm
    args = SimpleNamespace(
        num_generations=SIZE,
        steps_per_generation=every,
        num_iterations=1,
        gradient_accumulation_steps=accumulation,
        generation_batch_size=GROUPS * SIZE,
    )
    recipe = {
        "curriculum": dict(curriculum or {}),
        "rollout": {"over_sample": over_sample},
        "grpo": {"scale_rewards": "group"},
        "estimator": "trl",
    }
    history, left, checkpoint = _begun(directory, recipe, args, resume=resume)
    run, done = history.run, 0 if checkpoint is None else int(checkpoint.name.split("-")[1])
    domains = {task.id: task.domain for task in TASKS}
    draws = Curriculum(domains, CurriculumSettings(**curriculum), seed=SEED) if curriculum else None
    over_sampling = OverSampling(over_sample) if over_sample else None
    states = [part for part in (draws, over_sampling) if part is not None]
    ledger = Ledger(run.ledger)
    written = GenerationLedger(Generations.of(args), ledger)
    engine = PlayedEngine()
    engine.die_at = die_at
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
            curriculum=draws,
            over_sampling=over_sampling,
            journal=journal,
            ledger=written,
            again=history.again,
            finished=left.finished,
        )
        state = SimpleNamespace(global_step=done)
        trainer = SimpleNamespace(num_generations=SIZE, args=args, state=state)
        if asked is not None:
            engine.asked = asked
        stack.enter_context(suppress(Dead))
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
    asked: list[str] | None = None,
) -> Path:
    """The same with `mode: async`; the groups of odd numbers arrive an update later."""
    args = SimpleNamespace(num_generations=SIZE)
    recipe = {
        "mode": "async",
        "policy": {"type": "vllm"},
        "curriculum": {"refill_rounds": refill},
        "grpo": {"max_staleness": max_staleness},
    }
    history, left, checkpoint = _begun(directory, recipe, args, resume=resume)
    run, step = history.run, 0 if checkpoint is None else int(checkpoint.name.split("-")[1])
    progress, ledger = GroupProgress(), Ledger(run.ledger)
    if checkpoint is not None:
        progress.restore(checkpoint)
    admission = Admission(progress, max_staleness=max_staleness, tokens=60, at_once=4)
    kind = {"kind": "rloo", "leave_out_equal": refill > 0}
    again = list(recorded_groups(left.finished, TASKS, seed=SEED, size=SIZE, **kind))
    for oldest, group in again:
        progress.admit_again(group.number, step if oldest is None else oldest)
        admission.arrive(group)
    with Journal(run.journal, start=history.starts - 1, process=9000) as journal:
        observer = JournalObserver(journal, lambda _: {"phase": "train", "step": step})
        late: list[Any] = []
        while step < updates:
            arriving, late = late, []
            for number in admission.admit(step, step):
                task = of_group(TASKS, number, seed=SEED)
                requests = group_requests(task, number, seed=SEED, size=SIZE, again=history.starts - 1)
                rollouts = [played(request, step) for request in requests]
                if asked is not None:
                    asked += [request.id for request in requests]
                for request, rollout in zip(requests, rollouts, strict=True):
                    observer.rolled_out(request, rollout)
                group = finished_group(rollouts, number=number, **kind)
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
