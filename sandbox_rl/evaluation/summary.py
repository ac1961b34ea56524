"""How well a policy does on a set of tasks, with intervals that are honest about chance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sandbox_rl.evaluation.statistics import mean_over_tasks
from sandbox_rl.metrics import SOLVED, pass_at_k, rollout_metrics
from sandbox_rl.rollout import EpisodeRequest
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Rollout, Task

__all__ = ["Evaluation", "accuracy_text", "evaluation_requests", "summarise"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results over N tasks of k samples each.

    Args:
        tasks: those with at least one judged sample, on which every figure rests.
        accuracy: mean over tasks of the mean reward of a task's samples (avg@k), in [0, 1].
        half_width: half of the 95 % interval of `accuracy`, over tasks (`statistics.mean_over_tasks`); 1 of a
            single task, which says nothing of others.
        pass_at: k → unbiased pass@k, for k = 1 and k = samples.
        domains: domain → accuracy.
        metrics: means over episodes, as `metrics.rollout_metrics` names them.
        unjudged: episodes without a reward; they count neither way.
        unjudged_tasks: tasks none of whose samples could be judged.
    """

    tasks: int
    accuracy: float
    half_width: float
    pass_at: dict[int, float]
    domains: dict[str, float]
    metrics: dict[str, float]
    unjudged: int
    unjudged_tasks: int = 0

    def __str__(self) -> str:
        """The accuracy with its interval and the number of tasks that it rests on."""
        return accuracy_text(
            self.accuracy,
            self.half_width,
            tasks=self.tasks,
            unjudged_tasks=self.unjudged_tasks,
            unjudged=self.unjudged,
        )


def accuracy_text(
    accuracy: float, half_width: float, *, tasks: int, unjudged_tasks: int = 0, unjudged: int = 0
) -> str:
    """Such as "80.0 % ± 17.5 of 20 tasks judged, 17 not judged".

    Args:
        unjudged: episodes without a reward, those of unjudged tasks too.
    """
    if not tasks:
        return f"not measured: 0 tasks judged, {unjudged_tasks} not judged"
    missing = f", {unjudged_tasks} not judged" if unjudged_tasks else ""
    if unjudged and not unjudged_tasks:
        missing = f", {unjudged} episodes not judged"
    return f"{100 * accuracy:.1f} % ± {100 * half_width:.1f} of {tasks} tasks judged{missing}"


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
        return Evaluation(0, 0.0, 0.0, {}, {}, rollout_metrics(rollouts), unjudged, len(domain_of))
    means = {task: fmean(values) for task, values in by_task.items()}
    domains: dict[str, list[float]] = defaultdict(list)
    for task, value in means.items():
        domains[domain_of[task]].append(value)
    mean = mean_over_tasks(list(means.values()))
    assert mean is not None, "something was judged"
    return Evaluation(
        tasks=len(means),
        accuracy=mean.value,
        half_width=1.0 if mean.half_width is None else mean.half_width,
        pass_at=_pass_at(list(by_task.values())),
        domains={domain: fmean(values) for domain, values in sorted(domains.items())},
        metrics=rollout_metrics(rollouts),
        unjudged=unjudged,
        unjudged_tasks=len(domain_of.keys() - by_task.keys()),
    )


def _pass_at(samples: Sequence[Sequence[float]]) -> dict[int, float]:
    """pass@1 and pass@k for the number of samples that every task has."""
    most = min(len(values) for values in samples)
    return {
        k: fmean(pass_at_k(len(values), sum(v >= SOLVED for v in values), k) for values in samples)
        for k in sorted({1, most})
    }
