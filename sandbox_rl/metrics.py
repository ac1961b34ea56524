"""What a batch of rollouts says about the policy and about us, as plain numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import comb
from statistics import fmean
from typing import Any

from sandbox_rl.types import Rollout, StopReason, ToolCall

Logs = Mapping[str, Any]
"""What a trainer logs at once, by name; None and NaN say that there is no value."""

SOLVED = 1.0
"""A rollout solves its task when its reward reaches this value."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples solves the task (arXiv 2107.03374).

    Args:
        samples: n ≥ k samples drawn, of which `correct` solved it.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {samples}")
    if samples - correct < k:
        return 1.0
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over a batch. Names are paths such as `reward/math`; fractions lie in [0, 1]; `judged` and
    `judged/math` say how many episodes rewards rest on.

    Rollouts without a reward count towards `infra_fault_rate`, or `masked_rate` where the recipe masks
    them, towards the shares of stop reasons, and nothing else about the policy.
    """
    if not rollouts:
        return {}
    judged = [r for r in rollouts if r.reward.value is not None]
    out: dict[str, float] = {
        "episodes": float(len(rollouts)),
        "judged": float(len(judged)),
        "infra_fault_rate": sum(r.reward.value is None and not r.reward.masked for r in rollouts)
        / len(rollouts),
    }
    if masked := sum(r.reward.masked for r in rollouts):
        out["masked_rate"] = masked / len(rollouts)
    if not judged:
        return out
    values = [r.reward.value for r in judged if r.reward.value is not None]
    out["reward/mean"] = fmean(values)
    out["solve_rate"] = fmean(float(v >= SOLVED) for v in values)
    by_domain: dict[str, list[float]] = defaultdict(list)
    for rollout, value in zip(judged, values, strict=True):
        by_domain[rollout.task.domain].append(value)
    out |= {f"reward/{domain}": fmean(v) for domain, v in sorted(by_domain.items())}
    out |= {f"judged/{domain}": float(len(v)) for domain, v in sorted(by_domain.items())}

    stops = Counter(r.trajectory.stop for r in rollouts)
    out |= {f"stop/{stop.value}": stops[stop] / len(rollouts) for stop in StopReason}
    out |= _lengths(judged) | _tools(judged) | _seconds(judged)
    return out


def group_metrics(groups: Iterable[Sequence[Rollout]]) -> dict[str, float]:
    """What only whole groups tell: pass@G and the share of groups whose rewards are all equal."""
    groups = [[r for r in group if r.reward.value is not None] for group in groups]
    groups = [group for group in groups if group]
    if not groups:
        return {}
    return {
        "pass_at_group": fmean(
            float(any(r.reward.value is not None and r.reward.value >= SOLVED for r in group))
            for group in groups
        ),
        "zero_variance_groups": fmean(float(len({r.reward.value for r in group}) == 1) for group in groups),
    }


def _lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    sampled = [sum(len(t.action.token_ids) for t in r.trajectory.turns) for r in rollouts]
    observed = [sum(len(t.observation_ids) for t in r.trajectory.turns) for r in rollouts]
    return {
        "turns": fmean(len(r.trajectory.turns) for r in rollouts),
        "tokens/prompt": fmean(len(r.trajectory.prompt_ids) for r in rollouts),
        "tokens/sampled": fmean(sampled),
        "tokens/observed": fmean(observed),
        "tokens/observed_share": sum(observed) / max(1, sum(observed) + sum(sampled)),
    }


def _tools(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Calls per episode by tool, and failures per episode by kind."""
    calls: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for rollout in rollouts:
        for turn in rollout.trajectory.turns:
            calls.update(known_tool(call.name) for call in turn.calls if isinstance(call, ToolCall))
            failures.update(o.failure.value for o in turn.observations if o.failure is not None)
    out = {f"calls/{name}": count / len(rollouts) for name, count in sorted(calls.items())}
    return out | {f"failures/{kind}": count / len(rollouts) for kind, count in sorted(failures.items())}


def known_tool(name: str) -> str:
    """The policy chooses the names that it calls: only those that exist may become metric names."""
    return name if name in ("execute_bash", "str_replace_editor", "submit") else "unknown"


def _seconds(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean seconds per episode; waiting is what is left: sandbox boot, answer reading, queueing."""
    generation = [sum(t.timing.generation for t in r.trajectory.turns) for r in rollouts]
    execution = [sum(t.timing.execution for t in r.trajectory.turns) for r in rollouts]
    total = [r.trajectory.seconds for r in rollouts]
    return {
        "seconds/generation": fmean(generation),
        "seconds/execution": fmean(execution),
        "seconds/scoring": fmean(r.reward.seconds for r in rollouts),
        "seconds/waiting": fmean(
            max(0.0, t - g - e) for t, g, e in zip(total, generation, execution, strict=True)
        ),
        "seconds/episode": fmean(total),
    }
