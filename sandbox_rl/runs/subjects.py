"""What is evaluated: the held-out tasks of a recipe, or a suite, with the settings of their episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.config.shipped import find_target
from sandbox_rl.config.suite import Suite, find_suite, is_suite, load_suite
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.evaluation.plan import EvaluationPlan, Part, parts_by_domain
from sandbox_rl.policies.base import Sampling
from sandbox_rl.tasks.load import load_source, load_tasks
from sandbox_rl.types import Task


@dataclass(frozen=True, slots=True)
class Subject:
    """Tasks in parts, and how their episodes are run.

    Args:
        base_dir: what relative paths of the settings are relative to.
        skipped: part → why it was left out.
    """

    settings: Recipe | Suite
    base_dir: Path
    parts: tuple[Part, ...]
    sampling: Sampling
    skipped: Mapping[str, str]

    @classmethod
    def open(cls, target: str, overrides: Sequence[str] = (), *, samples: int | None = None) -> Subject:
        """That of a file, or of a suite or a recipe that comes along by its name.

        Args:
            samples: replaces those of the file.

        Raises:
            ConfigError, DataError: what is wrong with it, in one line.
        """
        if samples is not None and samples < 1:
            raise ConfigError(f"--samples: {samples}, expected at least 1")
        path = find_target(target)
        base_dir = path.resolve().parent
        if is_suite(path):
            return cls.of_suite(load_suite(path, overrides), base_dir, samples=samples)
        recipe = load_recipe(path, overrides)
        if recipe.evaluation.tasks == 0:
            raise ConfigError("evaluation.tasks: 0, expected at least 1; set evaluation.tasks=200")
        tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
        return cls.held_out(recipe, base_dir, tasks, samples=samples)

    @classmethod
    def held_out(
        cls, recipe: Recipe, base_dir: Path, tasks: Sequence[Task], *, samples: int | None = None
    ) -> Subject:
        """As many of a recipe's held-out tasks as it says; each domain is a part."""
        settings = recipe.evaluation
        parts = parts_by_domain(tasks[: settings.tasks], settings.samples if samples is None else samples)
        return cls(recipe, base_dir, parts, settings.sampling, {})

    @classmethod
    def of_suite(cls, suite: Suite, base_dir: Path, *, samples: int | None = None) -> Subject:
        """The parts of a suite that are available.

        Raises:
            DataError: a part that is required cannot be loaded.
        """
        parts: list[Part] = []
        skipped: dict[str, str] = {}
        for part in suite.parts:
            limits = [limit for limit in (part.tasks, suite.limit) if limit is not None]
            try:
                tasks = load_source(
                    part.source, limit=min(limits, default=None), base_dir=base_dir, seed=suite.seed
                )
            except DataError as error:
                if part.required:
                    raise DataError(f"part {part.name!r} of suite {suite.name!r}: {error}") from error
                skipped[part.name] = str(error)
                continue
            parts.append(Part(part.name, tasks, part.samples if samples is None else samples))
        return cls(suite, base_dir, tuple(parts), suite.sampling, skipped)

    @classmethod
    def scheduled(cls, recipe: Recipe) -> Subject | None:
        """The suite that the recipe runs while it trains; None where it names none.

        Raises:
            ConfigError, DataError: what is wrong with the suite.
        """
        schedule = recipe.evaluation.suite
        if schedule is None:
            return None
        path = find_suite(schedule.path)
        subject = cls.of_suite(load_suite(path), path.resolve().parent)
        subject.plan(recipe.model.path)  # whether its tasks can be distinguished
        return subject

    @property
    def tasks(self) -> int:
        """Of all parts."""
        return sum(len(part.tasks) for part in self.parts)

    def plan(
        self,
        model: str,
        *,
        modes: tuple[str, ...] = ("sandbox",),
        label: str = "",
        share: tuple[int, int] = (0, 1),
    ) -> EvaluationPlan:
        """The plan of one evaluation.

        Raises:
            ConfigError: as `EvaluationPlan`.
        """
        return EvaluationPlan(
            self.settings.name,
            model,
            self.parts,
            modes,
            self.settings.seed,
            self.sampling,
            self.skipped,
            label,
            share,
        )
