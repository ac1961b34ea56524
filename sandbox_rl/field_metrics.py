"""Metrics by the names that people of the field look for, beside TRL's and our own.

This is the one place that maps: what is measured elsewhere comes in by its own name, and goes out by these.
The table of docs/metrics.md is made of it.
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
class FieldMetric:
    """A name of the field.

    Args:
        unit: of the value.
        formula: how it comes about, for a person.
        source: the names that it is computed from, or where it is measured.
    """

    name: str
    unit: str
    formula: str
    source: str


_SHARE = "rollout × ({of} of the update's episodes) / (all of their seconds)"
UPDATE = (
    FieldMetric(
        "mismatch_kl",
        "nats per token",
        "mean of exp(d) − 1 − d over sampled tokens, d = trainer's log-prob − sampler's; "
        "the k3 estimate of the divergence (joschu.net/blog/kl-approx.html)",
        "`mismatch/kl`; with `mode: async` TRL's `kl`, which holds what the policy has changed since as well",
    ),
    FieldMetric(
        "off_policy/age_mean",
        "updates",
        "mean over trained tokens of: updates done when they are trained on − when they were sampled",
        "trainer; `mode: async`: weight versions of the tokens",
    ),
    FieldMetric("off_policy/age_max", "updates", "the largest of these", "as `off_policy/age_mean`"),
    FieldMetric(
        "time/step",
        "seconds",
        "wall clock of an update: rollouts or the wait for them, publication, loss, gradients, optimizer",
        "trainer; `mode: async`: `perf/step_s`, of the first update the sum of its parts",
    ),
    FieldMetric(
        "time/rollout",
        "seconds",
        "wall clock in which the trainer has no update to compute because episodes run",
        "trainer; `mode: async`: `perf/rollout_wait_s`",
    ),
    *(
        FieldMetric(name, "seconds", _SHARE.format(of=f"`{source}`"), f"`time/rollout`, `{source}`")
        for name, source in _EPISODE_SECONDS.items()
    ),
    FieldMetric(
        "time/publish",
        "seconds",
        "wall clock until the policy samples with new weights; hardly any where it is the trained model",
        "trainer; `mode: async`: `perf/weight_sync_s`",
    ),
    FieldMetric(
        "time/update",
        "seconds",
        "step − rollout − publish: loss, gradients, optimizer",
        "`time/step`, `time/rollout`, `time/publish`",
    ),
    FieldMetric(
        "perf/throughput",
        "tokens per second",
        "tokens of an update's samples, prompts included, over all processes / step",
        "TRL's `num_tokens`; `mode: async`: `sample/forwarded_tokens_mean` × `batch/samples_per_step`; "
        "`time/step`",
    ),
)
"""Of each update, without a prefix."""
EVALUATION = (
    FieldMetric(
        "avg@K",
        "reward",
        "mean over tasks of the mean reward of their K samples",
        "`accuracy`, where every task has K samples that were judged",
    ),
    FieldMetric(
        "pass@K",
        "probability",
        "mean over tasks of 1 − C(n − c, K) / C(n, K), n samples of which c solved it (arXiv 2107.03374)",
        "`pass_at_K`, for K = 1, 2, 4 … and n",
    ),
)
"""Of each evaluation, below `eval/` and `suite/NAME/`."""


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
    """The names of `UPDATE` but `off_policy/…`, as far as `found` has what they are computed from.

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
    """The names of `EVALUATION`.

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
