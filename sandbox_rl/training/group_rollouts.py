"""TRL's `rollout_func`: task ids in, rolled out in groups, scored token rows out.

The contract of `rollout_func` in TRL 1.16 (each line pinned by a test in tests/smoke):
prompts arrive repeated `num_generations` times; rows go back in order and one per prompt, which TRL
does not check and so we do; a reward of None takes a row out of its group's baseline; `env_mask`
marks with 1 what the loss is taken over: what the policy sampled, in rows that have a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl import GRPOTrainer

from sandbox_rl.audit.rows import TokenClass
from sandbox_rl.audit.samples import SampleAudit
from sandbox_rl.metrics import group_metrics, rollout_metrics
from sandbox_rl.observer import Observer
from sandbox_rl.rollout import EpisodeRequest, RolloutEngine
from sandbox_rl.rollout.order import of_group
from sandbox_rl.seeds import derive_seed
from sandbox_rl.training.agreement import together
from sandbox_rl.training.curriculum import Curriculum, outcome_of
from sandbox_rl.training.estimator import Estimator
from sandbox_rl.training.generations import Generations
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.refill import Refilled, refill
from sandbox_rl.training.rows import to_rows
from sandbox_rl.types import Rollout, Task

__all__ = ["Generation", "GroupRollouts", "outcome_reward"]


def outcome_reward(
    prompts: Sequence[str], signal: Sequence[float | None], log_metric: Any, **columns: Any
) -> list[float | None]:
    """TRL's reward function: hands on what the rollouts were scored with, and their metrics."""
    for name, value in columns["rollout_metrics"][0].items():
        log_metric(name, value)
    return list(signal)


class GroupRollouts:
    """TRL's `rollout_func`: task ids in, scored token rows out.

    Args:
        engine: entered already, living in `loop`.
        tasks: by id; a prompt is a task's id.
        rank, world: of this process, and how many there are.
        shuffle: whether each pass over the tasks has an order of its own.
        curriculum: draws the tasks in the trainer's place and refills groups that teach nothing.
        on_step: called with the step and all its rollouts, replaced ones too, once they are all there.
        again: step → how often it was sampled before; part of the episodes' ids.
        observer: sees the episodes as they happen.
        audit: is told what was sampled before the trainer gets it.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        loop: LoopThread,
        tasks: Mapping[str, Task],
        *,
        estimator: Estimator,
        seed: int,
        eos_id: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        curriculum: Curriculum | None = None,
        on_step: Callable[[int, Sequence[Rollout]], None] | None = None,
        observer: Observer | None = None,
        audit: SampleAudit | None = None,
        again: Callable[[int], int] = lambda step: 0,
    ) -> None:
        self._again = again
        self._audit = audit
        self._engine = engine
        self._loop = loop
        self._tasks = tasks
        self._estimator = estimator
        self._seed = seed
        self._eos_id = eos_id
        self._rank = rank
        self._world = world
        self._shuffle = shuffle
        self._ids = list(tasks)
        self._last: int | None = None
        self._curriculum = curriculum
        self._on_step = on_step
        self._observer = observer

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Roll out one generation batch of this rank.

        Raises:
            InfraFault: every episode failed on our side.
        """
        size = trainer.num_generations
        groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        assert all(len(set(group)) == 1 and len(group) == size for group in groups), (
            f"TRL sent {len(prompts)} prompts that are not groups of {size} equal ones"
        )
        now = self._generation(trainer, len(groups))
        step = now.step
        task_ids = [self._task_of(now.first + place) for place in range(len(groups))]
        if self._curriculum is not None:
            task_ids = self._curriculum.draw(task_ids, now.number)
        self._engine.occupancy.take()  # what an evaluation left
        drawn = self._roll_out_drawn(now, [(name, (now.first + i,)) for i, name in enumerate(task_ids)])
        refilled = Refilled(tuple(drawn), (), {})
        if self._curriculum is not None and self._curriculum.refill_rounds:
            refilled = refill(
                drawn,
                self._curriculum,
                now.number,
                lambda chosen, number, before: self._roll_out(
                    now, [(name, (now.first + i, "refill", number)) for i, name in chosen], before
                ),
            )
        everything = (*refilled.groups, *refilled.left_out)
        if self._on_step is not None:
            with together():
                self._on_step(step, [rollout for group in everything for rollout in group])
        if self._curriculum is not None:
            self._curriculum.record([outcome_of(group) for group in everything])
        if self._audit is not None:
            left_out = {
                TokenClass.REFILLED: [rollout for group in refilled.left_out for rollout in group],
                TokenClass.CUT: self._cut(),
            }
            self._audit.rolled_out(refilled.groups, step, left_out=left_out)
        rollouts = [rollout for group in refilled.groups for rollout in group]
        rows = to_rows(rollouts, group_size=size, estimator=self._estimator, eos_id=self._eos_id)
        assert len(rows["prompt_ids"]) == len(prompts), "TRL needs one row per prompt"
        # Of the groups as drawn: refilling selects, so what is trained on says nothing about the policy.
        metrics = rollout_metrics([rollout for group in drawn for rollout in group]) | group_metrics(drawn)
        metrics |= refilled.metrics | self._engine.occupancy.take()
        return {**rows, "rollout_metrics": [metrics] * len(prompts)}

    def _cut(self) -> Sequence[Rollout]:
        """Episodes that had ended in groups that were cancelled in this generation."""
        return ()

    def _generation(self, trainer: GRPOTrainer, local: int) -> Generation:
        """The one that is asked for; TRL does not say which."""
        rhythm, step = Generations.of(trainer.args), int(trainer.state.global_step)
        number = rhythm.first_of(step) if self._last is None else self._last + 1
        if rhythm.step_of(number) != step:
            raise RuntimeError(
                f"generation {number} begins after {rhythm.step_of(number)} updates, TRL asks after {step}"
            )
        self._last = number
        return Generation(
            number=number,
            step=step,
            within=number - rhythm.first_of(step),
            first=(number * self._world + self._rank) * local,
            size=trainer.num_generations,
            again=self._again(step),
        )

    def _task_of(self, group: int) -> str:
        return of_group(self._ids, group, seed=self._seed, shuffle=self._shuffle)

    def _roll_out_drawn(
        self, now: Generation, wanted: Sequence[tuple[str, tuple[int | str, ...]]]
    ) -> Sequence[Sequence[Rollout]]:
        """The groups that a generation begins with; a fault of one process is every process's."""
        with together():
            return self._roll_out(now, wanted, 0)

    def _roll_out(
        self, now: Generation, wanted: Sequence[tuple[str, tuple[int | str, ...]]], before: int
    ) -> Sequence[Sequence[Rollout]]:
        """A group per task.

        Args:
            wanted: task ids, each with what names the group in the whole run: its seeds follow from both.
            before: groups of this process that this generation has rolled out already.
        """
        requests = [
            EpisodeRequest(
                id=now.episode_id(self._rank, (before + place) * now.size + sample),
                task=self._tasks[task_id],
                seed=derive_seed(self._seed, task_id, *group, sample),
            )
            for place, (task_id, group) in enumerate(wanted)
            for sample in range(now.size)
        ]
        rollouts = self._loop.run(self._engine.run(requests, observer=self._observer))
        return [rollouts[i : i + now.size] for i in range(0, len(rollouts), now.size)]


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of this process.

    Args:
        number: in the run; step: updates before it; within: number among those that begin after these.
        first: number, in the run, of the first group of this process.
        size: of a group.
        again: how often it was sampled before, by starts of the run whose records were replaced.
    """

    number: int
    step: int
    within: int
    first: int
    size: int
    again: int

    def episode_id(self, rank: int, position: int) -> str:
        """The name of one episode; `position` is its place among those of this rank."""
        name = f"train-{self.step:06d}.{self.within}-{rank}-{position:04d}"
        return f"{name}-r{self.again}" if self.again else name
