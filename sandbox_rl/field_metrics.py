"""Metrics by the names that people of the field look for, beside TRL's and our own.

This is the one place that maps: what is measured elsewhere comes in by its own name, and goes out by these.
docs/metrics.md says what each is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_EPISODE_SECONDS = {
    "time/generate": "seconds/generation",
    "time/execute": "seconds/execution",
    "time/score": "seconds/scoring",
    "time/wait": "seconds/waiting",
}


@dataclass(frozen=True, slots=True)
class Spent:
    """What the trainer has measured of an update, or the mean of several.

    Args:
        step_s, rollout_s, publish_s: wall clock.
        tokens: of its samples, prompts included, over all processes.
    """

    step_s: float
    rollout_s: float
    publish_s: float
    tokens: float


def of_update(found: Mapping[str, float], spent: Spent) -> dict[str, float]:
    """The names of an update but `off_policy/…`, as far as `found` has what they are computed from.

    Args:
        found: metrics of the update by TRL's names and ours.
    """
    out = {
        "time/step": spent.step_s,
        "time/rollout": spent.rollout_s,
        "time/publish": spent.publish_s,
        "time/update": max(0.0, spent.step_s - spent.rollout_s - spent.publish_s),
        **_split(found, spent.rollout_s),
    }
    if spent.step_s > 0:
        out["perf/throughput"] = spent.tokens / spent.step_s
    for name in ("mismatch/kl", "kl"):
        if name in found:
            out["mismatch_kl"] = found[name]
            break
    return out


def of_evaluation(accuracy: float, samples: int | None, pass_at: Mapping[int, float]) -> dict[str, float]:
    """The names of an evaluation.

    Args:
        samples: of each task; None where they differ.
        pass_at: k → value.
    """
    mean = {} if samples is None else {f"avg@{samples}": accuracy}
    return mean | {f"pass@{k}": value for k, value in pass_at.items()}


def _split(found: Mapping[str, float], rollout_s: float) -> dict[str, float]:
    seconds = {name: found.get(source, 0.0) for name, source in _EPISODE_SECONDS.items()}
    total = sum(seconds.values())
    if total <= 0:  # no episode ran: the trainer has waited for nobody, or for all
        return dict.fromkeys(seconds, 0.0) | {"time/wait": rollout_s}
    return {name: rollout_s * value / total for name, value in seconds.items()}
