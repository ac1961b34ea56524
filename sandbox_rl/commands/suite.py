"""From the file of a recipe or a suite to what is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.config.suite import Suite, find_suite, is_suite, load_suite
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.evaluation.plan import Part, parts_by_domain
from sandbox_rl.evaluation.sources.load import load_source
from sandbox_rl.policies.base import Sampling
from sandbox_rl.tasks.load import load_tasks

__all__ = ["Subject", "load_parts", "open_subject"]


@dataclass(frozen=True, slots=True)
class Subject:
    """Tasks and the blocks under which their episodes run.

    Args:
        settings: the recipe or the suite.
        skipped: part → why it was left out.
    """

    settings: Recipe | Suite
    base_dir: Path
    parts: tuple[Part, ...]
    sampling: Sampling
    skipped: Mapping[str, str]


def open_subject(target: str, overrides: Sequence[str] = (), *, samples: int | None = None) -> Subject:
    """The held-out tasks of a recipe, or the parts of a suite.

    Args:
        target: a path, or the name of a shipped suite.
        samples: replaces those of the file.

    Raises:
        ConfigError, DataError: what is wrong with it, in one line.
    """
    if samples is not None and samples < 1:
        raise ConfigError(f"--samples: {samples}, expected at least 1")
    path = find_suite(target)
    base_dir = path.resolve().parent
    if is_suite(path):
        suite = load_suite(path, overrides)
        parts, skipped = load_parts(suite, base_dir=base_dir, samples=samples)
        return Subject(suite, base_dir, parts, suite.sampling, skipped)
    recipe = load_recipe(path, overrides)
    settings = recipe.evaluation
    if settings.tasks == 0:
        raise ConfigError("evaluation.tasks: 0, expected at least 1; set evaluation.tasks=200")
    tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)[: settings.tasks]
    parts = parts_by_domain(tasks, settings.samples if samples is None else samples)
    return Subject(recipe, base_dir, parts, settings.sampling, {})


def load_parts(
    suite: Suite, *, base_dir: Path, samples: int | None = None
) -> tuple[tuple[Part, ...], dict[str, str]]:
    """The parts of a suite, and of those that are not to be had and need not be, why.

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
    return tuple(parts), skipped
