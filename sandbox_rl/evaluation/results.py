"""From the ledger to the results of a run: per mode, per domain, and sandbox against plain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from sandbox_rl.evaluation.ledger import EpisodeRow
from sandbox_rl.evaluation.statistics import Difference, Mean, mean_over_tasks, paired_difference, pass_at
from sandbox_rl.evaluation.tool_mix import Use
from sandbox_rl.metrics import SOLVED

__all__ = ["ModeResults", "Results", "results_of"]


@dataclass(frozen=True, slots=True)
class ModeResults:
    """One mode's results.

    Args:
        episodes: judged episodes; `unjudged` counts the others, which count neither way.
        accuracy: avg@k over tasks; None when nothing was judged.
        pass_at: k → unbiased pass@k.
        domains: domain → accuracy.
        means: per judged episode: turns, calls, tokens/*, seconds/*; shares lie in [0, 1].
        stops: stop reason → share of judged episodes.
    """

    episodes: int
    unjudged: int
    accuracy: Mean | None
    pass_at: Mapping[int, float]
    domains: Mapping[str, Mean]
    means: Mapping[str, float]
    stops: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Results:
    """What `results.json` holds. `comparison` is sandbox minus plain where both were run."""

    name: str
    model: str
    tasks: int
    samples: int
    modes: Mapping[str, ModeResults]
    comparison: Difference | None
    comparison_by_domain: Mapping[str, Difference]

    @property
    def unjudged(self) -> int:
        """Episodes without a reward, all modes together."""
        return sum(mode.unjudged for mode in self.modes.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Results:
        """What `to_json` gave."""
        return cls(
            name=value["name"],
            model=value["model"],
            tasks=value["tasks"],
            samples=value["samples"],
            modes={name: _mode_from_json(mode) for name, mode in value["modes"].items()},
            comparison=Difference(**value["comparison"]) if value["comparison"] else None,
            comparison_by_domain={
                domain: Difference(**gap) for domain, gap in value["comparison_by_domain"].items()
            },
        )


def results_of(
    rows: Iterable[EpisodeRow], *, name: str, model: str, modes: Sequence[str], samples: int
) -> Results:
    """Summarise a ledger. The order of the rows does not matter."""
    by_mode: dict[str, list[EpisodeRow]] = {mode: [] for mode in modes}
    tasks: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.episode_id):
        if row.mode in by_mode:
            by_mode[row.mode].append(row)
            tasks[row.task_id] = row.domain
    comparison, by_domain = None, {}
    if {"sandbox", "plain"} <= by_mode.keys():
        first, second = (_task_means(by_mode[mode]) for mode in ("sandbox", "plain"))
        comparison = paired_difference(first, second)
        for domain in sorted(set(tasks.values())):
            inside = {task: value for task, value in first.items() if tasks[task] == domain}
            if (gap := paired_difference(inside, second)) is not None:
                by_domain[domain] = gap
    return Results(
        name=name,
        model=model,
        tasks=len(tasks),
        samples=samples,
        modes={mode: _mode(found) for mode, found in by_mode.items()},
        comparison=comparison,
        comparison_by_domain=by_domain,
    )


def _mode(rows: Sequence[EpisodeRow]) -> ModeResults:
    judged = [row for row in rows if row.reward is not None]
    domain_of = {row.task_id: row.domain for row in judged}
    means = _task_means(judged)
    domains: dict[str, list[float]] = defaultdict(list)
    for task, value in means.items():
        domains[domain_of[task]].append(value)
    per_domain = {domain: mean_over_tasks(values) for domain, values in sorted(domains.items())}
    samples: dict[str, list[float]] = defaultdict(list)
    for row in judged:
        if row.reward is not None:
            samples[row.task_id].append(row.reward)
    stops = Counter(row.stop for row in judged)
    return ModeResults(
        episodes=len(judged),
        unjudged=len(rows) - len(judged),
        accuracy=mean_over_tasks(list(means.values())),
        pass_at=pass_at([(len(v), sum(x >= SOLVED for x in v)) for v in samples.values()]),
        domains={domain: mean for domain, mean in per_domain.items() if mean is not None},
        means=_means(judged),
        stops={stop: count / len(judged) for stop, count in sorted(stops.items())},
    )


def _task_means(rows: Iterable[EpisodeRow]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.reward is not None:
            values[row.task_id].append(row.reward)
    return {task: fmean(rewards) for task, rewards in values.items()}


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
        accuracy=Mean(**value["accuracy"]) if value["accuracy"] else None,
        pass_at={int(k): v for k, v in value["pass_at"].items()},
        domains={domain: Mean(**mean) for domain, mean in value["domains"].items()},
        means=value["means"],
        stops=value["stops"],
    )
