"""How well a policy does on a set of tasks, with intervals that are honest about chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from sandbox_rl.metrics import SOLVED, pass_at_k, rollout_metrics
from sandbox_rl.rollout import EpisodeRequest
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Rollout, Task

__all__ = ["Evaluation", "evaluation_requests", "summarise"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results over N tasks of k samples each.

    Args:
        accuracy: mean over tasks of the mean reward of a task's samples (avg@k), in [0, 1].
        half_width: half of the 95 % interval of `accuracy`, over tasks (normal approximation).
        pass_at: k → unbiased pass@k, for k = 1 and k = samples.
        domains: domain → accuracy.
        metrics: means over episodes, as `metrics.rollout_metrics` names them.
        unjudged: episodes without a reward; they count neither way.
    """

    tasks: int
    accuracy: float
    half_width: float
    pass_at: dict[int, float]
    domains: dict[str, float]
    metrics: dict[str, float]
    unjudged: int


def evaluation_requests(
    tasks: Sequence[Task], *, samples: int, seed: int, label: str, start: int = 0
) -> list[EpisodeRequest]:
    """`samples` episodes of each task, tasks numbered from `start`; equal arguments, equal requests."""
    return [
        EpisodeRequest(
            id=f"{label}-{index:05d}-{sample}",
            task=task,
            seed=derive_seed(seed, "evaluation", task.id, sample),
        )
        for index, task in enumerate(tasks, start)
        for sample in range(samples)
    ]


def summarise(rollouts: Sequence[Rollout]) -> Evaluation:
    """The evaluation of rollouts in any order; samples of a task are found by its id."""
    by_task: dict[str, list[float]] = defaultdict(list)
    domain_of: dict[str, str] = {}
    unjudged = 0
    for rollout in rollouts:
        domain_of[rollout.task.id] = rollout.task.domain
        if rollout.reward.value is None:
            unjudged += 1
        else:
            by_task[rollout.task.id].append(rollout.reward.value)
    if not by_task:
        return Evaluation(0, 0.0, 0.0, {}, {}, rollout_metrics(rollouts), unjudged)
    means = {task: fmean(values) for task, values in by_task.items()}
    domains: dict[str, list[float]] = defaultdict(list)
    for task, value in means.items():
        domains[domain_of[task]].append(value)
    spread = stdev(means.values()) if len(means) > 1 else 0.0
    return Evaluation(
        tasks=len(means),
        accuracy=fmean(means.values()),
        half_width=1.96 * spread / math.sqrt(len(means)),
        pass_at=_pass_at(list(by_task.values())),
        domains={domain: fmean(values) for domain, values in sorted(domains.items())},
        metrics=rollout_metrics(rollouts),
        unjudged=unjudged,
    )


def _pass_at(samples: Sequence[Sequence[float]]) -> dict[int, float]:
    """pass@1 and pass@k for the number of samples that every task has."""
    most = min(len(values) for values in samples)
    return {
        k: fmean(pass_at_k(len(values), sum(v >= SOLVED for v in values), k) for values in samples)
        for k in sorted({1, most})
    }
