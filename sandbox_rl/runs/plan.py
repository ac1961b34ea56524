"""What a start of a run is going to do: read and checked before anything is started or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sandbox_rl.builders import training_arguments
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.runs.resume import Earlier, prompt_digests, sizes_of
from sandbox_rl.runs.subjects import Subject
from sandbox_rl.tasks.load import TaskSet, load_tasks
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.models import check_quantization
from sandbox_rl.training.prometheus import check_prometheus

__all__ = ["RunPlan"]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A recipe with what it names.

    Args:
        recipe: with the model's type settled.
        base_dir: what relative paths of the recipe are relative to.
        prompts: domain → digest of the words around its problems.
        args: TRL's settings.
        held_out: what is measured before and after training; None where nothing is.
        suite: what is measured beside it.
        earlier: the run that this start goes on with.
    """

    recipe: Recipe
    base_dir: Path
    train_tasks: TaskSet
    held_out_tasks: TaskSet
    prompts: Mapping[str, str]
    args: Any
    held_out: Subject | None
    suite: Subject | None
    earlier: Earlier | None

    @classmethod
    def of(cls, recipe: Recipe, *, base_dir: Path, earlier: Earlier | None = None) -> RunPlan:
        """Load the data and check what needs no model.

        Raises:
            UserError: data that is missing or does not fit the curriculum, a field that TRL refuses, or
                a suite that cannot be run; with `earlier`, tasks or sizes that are not those of its start.
        """
        tasks = load_tasks(recipe.data, split="train", base_dir=base_dir)
        held_out_tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
        if recipe.curriculum.active:  # refuses weights of domains that are not there, or left out
            Curriculum({task.id: task.domain for task in tasks}, recipe.curriculum, seed=recipe.seed)
        check_quantization(recipe.model)
        check_prometheus(recipe.metrics)
        held_out = Subject.held_out(recipe, base_dir, held_out_tasks)
        suite = Subject.scheduled(recipe)
        args = training_arguments(recipe, Path(recipe.output_dir))
        prompts = prompt_digests(
            (task.domain for task in chain(tasks, held_out_tasks)),
            [base_dir / folder for folder in recipe.prompts],
        )
        if earlier is not None:
            earlier.check(tasks, sizes_of(args), prompts)
        return cls(
            recipe,
            base_dir,
            tasks,
            held_out_tasks,
            prompts,
            args,
            held_out if held_out.tasks else None,
            suite,
            earlier,
        )

    @property
    def checkpoint(self) -> Path | None:
        """What training goes on from."""
        return None if self.earlier is None else self.earlier.checkpoint
