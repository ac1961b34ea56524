"""From the journal to the results of a run: per mode, per part, and sandbox against plain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from sandbox_rl.evaluation.plan import EvaluationPlan, task_key
from sandbox_rl.evaluation.run import EpisodeRow, read_rows
from sandbox_rl.evaluation.statistics import Difference, Mean, mean_over_tasks, paired_difference, pass_at
from sandbox_rl.evaluation.tool_mix import Use
from sandbox_rl.field_metrics import of_evaluation
from sandbox_rl.metrics import SOLVED, mean_counts
from sandbox_rl.types import StopReason

FORMAT = 2
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
        means: per judged episode: turns, calls, calls/*, failures/*, tokens/*, seconds/*; shares, such as
            solve_rate and use/*, lie in [0, 1].
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
        keys: task id → what identifies its content (`plan.task_key`).
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

    def __str__(self) -> str:
        """The accuracy of each mode, and of how many tasks."""
        if len(self.modes) == 1:
            return self.headline(*self.modes)
        return "; ".join(f"{mode} {self.headline(mode)}" for mode in self.modes)

    def headline(self, mode: str = "sandbox") -> str:
        """The accuracy, and of how many tasks: "80.0 % [58.4, 91.9] of 20 tasks judged, 17 not judged"."""
        found = self.modes[mode]
        tasks, lost = len(found.tasks), self.tasks - len(found.tasks)
        if found.accuracy is None:
            return f"not measured: 0 tasks judged, {lost} not judged"
        missing = f", {lost} not judged" if lost else ""
        if found.unjudged and not lost:
            missing = f", {found.unjudged} episodes not judged"
        return f"{found.accuracy} of {tasks} tasks judged{missing}"

    def metrics(self) -> dict[str, float]:
        """What sandbox episodes came to, by the names of `metrics.jsonl` and of trackers, below a prefix.

        What was not measured is left out: a zero would look like a measurement.
        """
        found = self.modes["sandbox"]
        planned = found.episodes + found.unjudged
        out = {
            "tasks": float(len(found.tasks)),
            "unjudged_tasks": float(self.tasks - len(found.tasks)),
            "episodes": float(found.episodes),
            "unjudged": float(found.unjudged),
            "infra_fault_rate": found.faults / planned,
        }
        if found.accuracy is None or found.macro is None:
            return out
        mean = found.accuracy
        out |= {"accuracy": mean.value, "low": mean.low, "high": mean.high, "macro": found.macro}
        out |= {f"accuracy/{part}": value.accuracy.value for part, value in found.parts.items()}
        out |= {f"pass_at_{k}": value for k, value in found.pass_at.items()}
        counts = {samples for _, samples in self.parts.values()}
        whole = len(counts) == 1 and not found.unjudged
        out |= of_evaluation(mean.value, counts.pop() if whole else None, found.pass_at)
        ends = (stop for stop in StopReason if stop is not StopReason.INFRA_FAULT)
        out |= {f"stop/{stop.value}": found.stops.get(stop.value, 0.0) for stop in ends}
        return out | dict(found.means)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = _plain().dump_python(self, mode="json")
        return {"format": FORMAT, **plain}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it did not.
        """
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}, expected {FORMAT}")
        return _plain().validate_python({name: v for name, v in value.items() if name != "format"})


@cache
def _plain() -> TypeAdapter[Results]:
    return TypeAdapter(Results)


def results_of(rows: Iterable[EpisodeRow], plan: EvaluationPlan) -> Results:
    """Summarise the episodes of a plan. The order of the rows does not matter."""
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


def results_of_journal(plan: EvaluationPlan, journal: Path) -> Results:
    """The results of what a journal holds of a plan, whole or not."""
    return results_of(read_rows(journal).values(), plan)


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
    calls = sum(row.counts["calls"] for row in rows)
    return {
        "solve_rate": fmean(row.reward is not None and row.reward >= SOLVED for row in rows),
        **mean_counts([row.counts for row in rows]),
        **{f"use/{use}": sum(row.counts.get(f"use/{use}", 0) for row in rows) / max(1, calls) for use in Use},
    }
