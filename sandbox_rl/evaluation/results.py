"""From the ledger to the results of a run: per mode, per part, and sandbox against plain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from sandbox_rl.evaluation.identity import task_key
from sandbox_rl.evaluation.ledger import EpisodeRow
from sandbox_rl.evaluation.plan import EvaluationPlan
from sandbox_rl.evaluation.statistics import Difference, Mean, mean_over_tasks, paired_difference, pass_at
from sandbox_rl.evaluation.tool_mix import Use
from sandbox_rl.metrics import SOLVED
from sandbox_rl.types import StopReason

__all__ = ["FORMAT", "ModeResults", "PartResults", "Results", "results_of"]

FORMAT = 1
"""Of `results.json`; goes up when a field changes its meaning."""


@dataclass(frozen=True, slots=True)
class PartResults:
    """One part in one mode. `accuracy` is avg@k over its tasks, `pass_at` k → unbiased pass@k."""

    accuracy: Mean
    pass_at: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class ModeResults:
    """One mode's results.

    Args:
        episodes: judged episodes; `unjudged` counts the others that were planned; they count neither way.
        faults: of the unjudged, those that were infrastructure faults.
        by_fallback: of the judged, those that a rule judged because the judge was down.
        accuracy: avg@k over all tasks; None when nothing was judged.
        macro: mean of the parts' accuracies, as papers average over benchmarks.
        pass_at: k → unbiased pass@k, for the samples that every task has.
        parts: part → its results.
        means: per judged episode: turns, calls, tokens/*, seconds/*; shares lie in [0, 1].
        stops: stop reason → share of judged episodes.
        tasks: task id → mean reward of its judged samples.
    """

    episodes: int
    unjudged: int
    faults: int
    by_fallback: int
    accuracy: Mean | None
    macro: float | None
    pass_at: Mapping[int, float]
    parts: Mapping[str, PartResults]
    means: Mapping[str, float]
    stops: Mapping[str, float]
    tasks: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Results:
    """What `results.json` holds.

    Args:
        parts: part → [tasks, samples of each].
        keys: task id → what identifies its content (`identity.task_key`).
        comparison: sandbox minus plain where both were run, over all tasks and by part.
        skipped: part → why it was left out.
    """

    name: str
    model: str
    seed: int
    parts: Mapping[str, tuple[int, int]]
    keys: Mapping[str, str]
    modes: Mapping[str, ModeResults]
    comparison: Difference | None
    comparison_by_part: Mapping[str, Difference]
    skipped: Mapping[str, str]

    @property
    def tasks(self) -> int:
        """Tasks of all parts."""
        return sum(tasks for tasks, _ in self.parts.values())

    @property
    def unjudged(self) -> int:
        """Episodes without a reward, all modes together."""
        return sum(mode.unjudged for mode in self.modes.values())

    @property
    def faults(self) -> int:
        """Of them, infrastructure faults."""
        return sum(mode.faults for mode in self.modes.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it did not.
        """
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}, expected {FORMAT}")
        return cls(
            name=value["name"],
            model=value["model"],
            seed=value["seed"],
            parts={name: (tasks, samples) for name, (tasks, samples) in value["parts"].items()},
            keys=value["keys"],
            modes={name: _mode_from_json(mode) for name, mode in value["modes"].items()},
            comparison=Difference(**value["comparison"]) if value["comparison"] else None,
            comparison_by_part={part: Difference(**gap) for part, gap in value["comparison_by_part"].items()},
            skipped=value["skipped"],
        )


def results_of(rows: Iterable[EpisodeRow], plan: EvaluationPlan) -> Results:
    """Summarise what a ledger holds of a plan. The order of the rows does not matter."""
    wanted = {request.id for mode in plan.modes for _, request in plan.requests(mode)}
    planned = plan.episodes // len(plan.modes)
    by_mode: dict[str, list[EpisodeRow]] = {mode: [] for mode in plan.modes}
    for row in sorted(rows, key=lambda row: row.episode_id):
        if row.episode_id in wanted:
            by_mode[row.mode].append(row)
    modes = {mode: _mode(found, planned) for mode, found in by_mode.items()}
    comparison, by_part = None, {}
    if {"sandbox", "plain"} <= modes.keys():
        first, second = modes["sandbox"].tasks, modes["plain"].tasks
        comparison = paired_difference(first, second)
        for part in plan.parts:
            ids = {task.id for task in part.tasks}
            inside = {task: value for task, value in first.items() if task in ids}
            if (gap := paired_difference(inside, second)) is not None:
                by_part[part.name] = gap
    return Results(
        name=plan.name,
        model=plan.model,
        seed=plan.seed,
        parts={part.name: (len(part.tasks), part.samples) for part in plan.parts},
        keys={task.id: task_key(task) for part in plan.parts for task in part.tasks},
        modes=modes,
        comparison=comparison,
        comparison_by_part=by_part,
        skipped=plan.skipped,
    )


def _mode(rows: Sequence[EpisodeRow], planned: int) -> ModeResults:
    judged = [row for row in rows if row.reward is not None]
    tasks = _rewards(judged)
    by_part: dict[str, list[EpisodeRow]] = defaultdict(list)
    for row in judged:
        by_part[row.part].append(row)
    parts: dict[str, PartResults] = {}
    for part, found in sorted(by_part.items()):
        rewards = _rewards(found)
        mean = mean_over_tasks([fmean(values) for values in rewards.values()])
        if mean is not None:
            parts[part] = PartResults(mean, _pass_at(rewards))
    stops = Counter(row.stop for row in judged)
    means = {task: fmean(values) for task, values in tasks.items()}
    return ModeResults(
        episodes=len(judged),
        unjudged=planned - len(judged),
        faults=sum(row.reward is None and row.stop == StopReason.INFRA_FAULT for row in rows),
        by_fallback=sum(row.by_fallback for row in judged),
        accuracy=mean_over_tasks(list(means.values())),
        macro=fmean(part.accuracy.value for part in parts.values()) if parts else None,
        pass_at=_pass_at(tasks),
        parts=parts,
        means=_means(judged),
        stops={stop: count / len(judged) for stop, count in sorted(stops.items())},
        tasks=means,
    )


def _rewards(rows: Iterable[EpisodeRow]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.reward is not None:
            values[row.task_id].append(row.reward)
    return values


def _pass_at(rewards: Mapping[str, Sequence[float]]) -> dict[int, float]:
    return pass_at([(len(values), sum(value >= SOLVED for value in values)) for values in rewards.values()])


def _means(rows: Sequence[EpisodeRow]) -> dict[str, float]:
    if not rows:
        return {}
    sampled, observed = sum(row.sampled for row in rows), sum(row.observed for row in rows)
    calls = sum(row.calls for row in rows)
    out = {
        "turns": fmean(row.turns for row in rows),
        "calls": calls / len(rows),
        "tokens/prompt": fmean(row.prompt for row in rows),
        "tokens/sampled": sampled / len(rows),
        "tokens/observed": observed / len(rows),
        "tokens/observed_share": observed / max(1, sampled + observed),
        "seconds/episode": fmean(row.seconds for row in rows),
        "seconds/generation": fmean(row.generation for row in rows),
        "seconds/execution": fmean(row.execution for row in rows),
    }
    for use in Use:
        out[f"use/{use.value}"] = sum(row.uses.get(use, 0) for row in rows) / max(1, calls)
    return out


def _mode_from_json(value: Mapping[str, Any]) -> ModeResults:
    return ModeResults(
        episodes=value["episodes"],
        unjudged=value["unjudged"],
        faults=value["faults"],
        by_fallback=value["by_fallback"],
        accuracy=Mean(**value["accuracy"]) if value["accuracy"] else None,
        macro=value["macro"],
        pass_at=_by_k(value["pass_at"]),
        parts={
            name: PartResults(Mean(**part["accuracy"]), _by_k(part["pass_at"]))
            for name, part in value["parts"].items()
        },
        means=value["means"],
        stops=value["stops"],
        tasks=value["tasks"],
    )


def _by_k(value: Mapping[str, float]) -> dict[int, float]:
    return {int(k): v for k, v in value.items()}
