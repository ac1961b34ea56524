"""What a run was to do with each group, from its recipe and its history alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from types import SimpleNamespace
from typing import Any

import yaml

from sandbox_rl.audit.rows import Advantages
from sandbox_rl.errors import DataError
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.training.asynchronous.progress import MAX_STALENESS
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.training.estimator import Estimator, advantage_of, advantage_rule, estimator_fields
from sandbox_rl.training.groups import advantages


@dataclass(frozen=True, slots=True)
class Schedule:
    """What follows from a run's recipe.

    Args:
        tasks: ids in the order of the data.
        size: of a group.
        groups: of a generation; 0 in an asynchronous run, which has none.
        per_update: generations of an update.
        curriculum: of the recipe, which a run keeps permanently.
        domains: of the tasks; None where they were not written.
        over_sampled: whether slow groups are cancelled and sampled again.
        rule: rewards of a group → its advantages; None where they depend on more than the group.
        masks_truncated: whether TRL may mask whole rows.
        staleness: (update from which on it holds, bound), in order.
        resumed_at: updates that the run had when it was resumed last.
        starts: (updates that the run had then, processes) of each start, in order.
    """

    asynchronous: bool
    seed: int
    tasks: Sequence[str]
    shuffle: bool
    size: int
    groups: int
    per_update: Fraction
    curriculum: CurriculumSettings
    domains: Sequence[str] | None
    over_sampled: bool
    rule: Advantages | None
    masks_truncated: bool
    staleness: Sequence[tuple[int, int]]
    resumed_at: int
    starts: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, run: RunDirectory) -> Schedule:
        """Read the recipe, the tasks and the history of a run. Nothing that the recipe names is imported.

        Raises:
            DataError: one of them cannot be read.
        """
        recipe, history = _recipe(run), History.read(run)
        mode, estimator = recipe.get("mode", "sync"), recipe.get("estimator", "paper")
        grpo = {**estimator_fields(estimator), **_block(recipe, "grpo")}
        sizes = history.started_with("sizes")
        try:
            size = int(sizes["episodes per group"])
            groups = int(sizes.get("groups per generation", 0))
            per_update = Fraction(sizes.get("generations per update", "1"))
            begun = [e for e in history.events if e["event"] in ("started", "resumed")]
            starts = tuple((int(e["step"]), int(e.get("processes", 1))) for e in begun)
            if starts[0][0] != 0 or min(processes for _, processes in starts) < 1:
                raise ValueError(starts)
            staleness = _staleness(history, grpo)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"{run.path / 'history.jsonl'}: it does not say the sizes that the run was started with, or "
                "when it was resumed, expected its first lines; name a run's directory as training left it"
            ) from error
        tasks, domains = _tasks(run)
        return cls(
            asynchronous=mode == "async",
            seed=int(recipe.get("seed", 0)),
            tasks=tasks,
            shuffle=bool(grpo.get("shuffle_dataset", True)),
            size=size,
            groups=groups,
            per_update=per_update,
            curriculum=_curriculum(run, recipe),
            domains=domains,
            over_sampled=bool(_block(recipe, "rollout").get("over_sample", 0)),
            rule=_rule(mode, estimator, grpo),
            masks_truncated=bool(grpo.get("mask_truncated_completions", False)),
            staleness=staleness,
            resumed_at=max(step for step, _ in starts),
            starts=starts,
        )

    @property
    def drawn(self) -> bool:
        """Whether a curriculum decides which tasks come."""
        settings = self.curriculum
        return not self.asynchronous and (settings.sampling == "difficulty" or bool(settings.domain_weights))

    @property
    def processes(self) -> frozenset[int]:
        """How many there were, of all starts."""
        return frozenset(processes for _, processes in self.starts)

    def processes_of(self, update: int) -> int:
        """How many did an update: those of the last start before it, since that did it again."""
        return [processes for step, processes in self.starts if step < update][-1]

    def ended_by(self, update: int) -> int:
        """Generations that nothing is left of after so many updates."""
        return int(update * self.per_update)

    def update_of(self, group: int) -> int:
        """The update at which the generation of a group's number ends."""
        return ceil((group // self.groups + 1) / self.per_update)

    def bound(self, update: int) -> int:
        """How old a token of an update may be, in updates."""
        return [bound for first, bound in self.staleness if first <= update][-1]


def _recipe(run: RunDirectory) -> Mapping[str, Any]:
    """As the run has written it: every value, or its default where that is the same in all versions."""
    try:
        found = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "data" not in found:
            raise ValueError("no recipe")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"{run.recipe}: it is no recipe ({type(error).__name__}: {' '.join(str(error).split())[:200]}), "
            "expected the one that the run has written; restore it"
        ) from error
    return found


def _block(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, dict) else {}


def _curriculum(run: RunDirectory, recipe: Mapping[str, Any]) -> CurriculumSettings:
    try:
        return CurriculumSettings.model_validate(dict(_block(recipe, "curriculum")))
    except ValueError as error:
        raise DataError(
            f"{run.recipe}: its curriculum is none ({' '.join(str(error).split())[:200]}), expected the one "
            "that the run has written; restore it"
        ) from error


def _tasks(run: RunDirectory) -> tuple[list[str], list[str] | None]:
    """Ids and domains of the training tasks."""
    try:
        found = json.loads(run.tasks.read_text(encoding="utf-8"))
        ids, domains = found["ids"], found.get("domains")
        for texts in (ids, ids if domains is None else domains):
            if len(texts) != len(ids) or not ids or not all(isinstance(text, str) for text in texts):
                raise ValueError("no list of texts, one for each task")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{run.tasks}: it does not hold the ids of the training tasks ({type(error).__name__}: {error}); "
            "name a run's directory as training left it"
        ) from error
    return list(ids), domains


def _rule(mode: str, estimator: Estimator, grpo: Mapping[str, Any]) -> Advantages | None:
    if mode == "async":
        kind = advantage_of(estimator)
        return lambda rewards: advantages(rewards, kind)
    scale = grpo.get("scale_rewards", "group")
    names = {True: "group", False: "none"}
    args = SimpleNamespace(
        scale_rewards=names.get(scale, scale) if isinstance(scale, bool) else scale,
        reward_weights=grpo.get("reward_weights"),
        multi_objective_aggregation=grpo.get("multi_objective_aggregation", "sum_then_normalize"),
    )
    return advantage_rule(estimator, args)


def _staleness(history: History, grpo: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The recipe holds the newest value; the history, what it was before each change."""
    now = int(grpo.get("max_staleness", MAX_STALENESS))
    changes = [
        (int(event["step"]), event["from"])
        for event in history.events
        if event["event"] == "changed" and event.get("field") == "grpo.max_staleness"
    ]
    bounds, first = [], 0
    for step, before in changes:
        bounds.append((first, MAX_STALENESS if before is None else int(before)))
        first = step + 1
    return [*bounds, (first, now)]
