"""Where generations lie among updates: everything that is drawn or sampled is named by a generation's number.

TRL counts in micro-batches: an update takes `gradient_accumulation_steps` of them, a generation lasts for
`steps_per_generation * num_iterations`. So an update may hold several generations, and a generation several
updates. Where an update and a generation end together is a border: there, and only there, nothing sampled
waits for its update, and a run that stops can go on as if it had not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, lcm
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.training.views import RhythmArgs

__all__ = ["Generations", "StopAtBorders"]


@dataclass(frozen=True, slots=True)
class Generations:
    """The rhythm of a run.

    Args:
        every: micro-batches that a generation lasts for.
        accumulation: micro-batches of an update.
        groups: of a generation, all processes together.
    """

    every: int
    accumulation: int
    groups: int

    @classmethod
    def of(cls, args: RhythmArgs) -> Generations:
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

    def first_of(self, step: int) -> int:
        """Number of the first generation that begins after `step` updates, counted from 0."""
        return ceil(step * self.accumulation / self.every)

    def step_of(self, number: int) -> int:
        """Updates that are complete when a generation begins."""
        return number * self.every // self.accumulation

    def count(self, steps: int) -> int:
        """Generations that so many updates take."""
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

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let through or hold back."""
        trained = state.global_step * self._generations.accumulation / self._generations.every
        state.epoch = trained * self._generations.groups / self._tasks
        if self._generations.is_border(state.global_step):
            control.should_save = control.should_save or self._save_is_due
            self._save_is_due = False
        else:
            self._save_is_due = self._save_is_due or control.should_save
            control.should_save = control.should_training_stop = False
