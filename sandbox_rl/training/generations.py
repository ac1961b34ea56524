"""Where generations lie among updates: everything that is drawn or sampled is named by a generation's number.

TRL counts in micro-batches: an update takes `gradient_accumulation_steps` of them, a generation lasts for
`steps_per_generation * num_iterations`. So an update may hold several generations, and a generation several
updates. Where an update and a generation end together is a border: there, and only there, nothing sampled
waits for its update, and a run that stops can go on as if it had not.

The ledger gets a generation's samples once its updates have finished. One that several updates are taken from
stands in the line of the last of them; an update that holds several generations has them all in its line.
Each process keeps its own groups until then, and the first one writes those of all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, lcm
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.ledger import Group, Ledger, Sample, SampleEnd, Update
from sandbox_rl.training.agreement import together
from sandbox_rl.training.groups import NumberedGroup, end_of, teaches
from sandbox_rl.training.views import GenerationArgs


@dataclass(frozen=True, slots=True)
class Generations:
    """How generations and updates of a run follow each other.

    Args:
        every: micro-batches that a generation lasts for.
        accumulation: micro-batches of an update.
        groups: of a generation, all processes together.
    """

    every: int
    accumulation: int
    groups: int

    @classmethod
    def of(cls, args: GenerationArgs) -> Generations:
        """From TRL's settings."""
        return cls(
            every=args.steps_per_generation * args.num_iterations,
            accumulation=args.gradient_accumulation_steps,
            groups=args.generation_batch_size // args.num_generations,
        )

    @property
    def period(self) -> int:
        """Updates from border to border."""
        return lcm(self.every, self.accumulation) // self.accumulation

    def is_border(self, step: int) -> bool:
        """Whether a generation ends with the update number `step`, counted from 1."""
        return step * self.accumulation % self.every == 0

    def step_of(self, number: int) -> int:
        """Updates that are complete when a generation begins."""
        return number * self.every // self.accumulation

    def count(self, steps: int) -> int:
        """Generations that so many updates take; the next one has this number, counted from 0."""
        return ceil(steps * self.accumulation / self.every)

    def ended_by(self, step: int) -> int:
        """Generations that nothing is left of after `step` updates."""
        return step * self.accumulation // self.every

    def steps_for(self, groups: float) -> int:
        """Updates, up to a border, until at least so many groups were trained on."""
        generations = ceil(groups / self.groups)
        return ceil(generations * self.every / (self.accumulation * self.period)) * self.period


class StopAtBorders(TrainerCallback):  # type: ignore[misc]
    """Saves and stops where nothing sampled is left over; what is asked for in between waits for that.

    Must come after all callbacks that ask.

    Args:
        tasks: of one pass over the data; the epoch that TRL logs counts such passes.
    """

    def __init__(self, generations: Generations, tasks: int) -> None:
        self._generations = generations
        self._tasks = tasks
        self._save_is_due = False

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let through or hold back."""
        trained = state.global_step * self._generations.accumulation / self._generations.every
        state.epoch = trained * self._generations.groups / self._tasks
        if self._generations.is_border(state.global_step):
            control.should_save = control.should_save or self._save_is_due
            self._save_is_due = False
        else:
            self._save_is_due = self._save_is_due or control.should_save
            control.should_save = control.should_training_stop = False


class GenerationLedger(TrainerCallback):  # type: ignore[misc]
    """Follows the groups of this process from the rollouts to the end of their last update.

    A callback before those that may end the run, so that no finished update is without its line.

    Args:
        ledger: on the main process; None elsewhere.
    """

    def __init__(self, generations: Generations, ledger: Ledger | None) -> None:
        self._generations = generations
        self._ledger = ledger
        self._handed: tuple[int, Sequence[NumberedGroup], Sequence[Group]] | None = None
        self._waiting: list[tuple[int, tuple[Group, ...]]] = []
        self._steps: list[bool] = []
        """Of the updates since groups were written last: whether the optimizer took a step."""

    def update(self, *, left_out: bool) -> None:
        """An update is about to finish.

        Args:
            left_out: it changes no weight; the same on all processes.
        """
        self._steps.append(not left_out)

    def rolled_out(self, generation: int, handed: Sequence[NumberedGroup], left_out: Sequence[Group]) -> None:
        """A generation of this process.

        Args:
            handed: to the trainer, in the order of its rows.
            left_out: sampled and not handed over.
        """
        self._handed = generation, handed, left_out

    def weighed(self, advantages: Sequence[float], counted: Sequence[bool]) -> list[str]:
        """What the trainer has made of the rows of the generation that it was handed last.

        Args:
            advantages: of each row.
            counted: whether any token of it counts in the loss.

        Returns:
            The episode of each row.
        """
        assert self._handed is not None, "rows come from rollouts"
        (number, handed, left_out), self._handed = self._handed, None
        rows = iter(zip(advantages, counted, strict=True))
        groups = [_group(one, [next(rows) for _ in one.rollouts]) for one in handed]
        self._waiting.append((number, (*groups, *left_out)))
        return [sample.episode for group in groups for sample in group.samples]

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
        """Write the line of the update that has finished.

        Raises:
            SetupError: on every process, when the file cannot be written.
        """
        done = self._generations.ended_by(state.global_step)
        mine = [group for number, groups in self._waiting if number < done for group in groups]
        self._waiting = [entry for entry in self._waiting if entry[0] >= done]
        if mine:
            # Of several updates from one generation, one that was taken has used it.
            steps, self._steps = self._steps, []
            mine = mine if any(steps) or not steps else [group.not_finite() for group in mine]
        everyone: list[Group] = gather_object(mine)
        with together():
            if self._ledger is not None:
                groups = sorted(everyone, key=lambda g: (g.number, -1 if g.refill is None else g.refill))
                self._ledger.write(Update(state.global_step, time.time(), tuple(groups)))


def _group(handed: NumberedGroup, rows: Sequence[tuple[float, bool]]) -> Group:
    equal = not teaches(handed.rollouts)
    samples = []
    for rollout, (advantage, counted) in zip(handed.rollouts, rows, strict=True):
        end = end_of(rollout, equal=equal)
        if end in (SampleEnd.USED, SampleEnd.EQUAL_REWARDS) and not counted:
            end = SampleEnd.OVERLONG  # `mask_truncated_completions`
        judged = rollout.reward.value is not None
        samples.append(Sample(rollout.trajectory.episode_id, end, advantage if judged else None))
    return Group(handed.number, handed.task, handed.refill, tuple(samples))
