"""What a batch of rollouts says about the policy and about us, as plain numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import comb, fsum
from statistics import fmean
from typing import Any

from sandbox_rl.types import Observation, Rollout, StopReason, ToolCall, ToolFailure

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
    `judged/math` say how many episodes rewards are means of.

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
    return out | mean_counts([episode_counts(rollout) for rollout in judged])


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


def episode_counts(rollout: Rollout) -> dict[str, float]:
    """What an episode took, by the names of its means.

    `turns`; calls by tool, `calls/TOOL`; observations that told of `failures/KIND`; `tokens/prompt`,
    `tokens/sampled` and `tokens/observed`, of an endpoint those that it reports; `seconds/*`, where waiting
    is what is left: sandbox boot, answer reading, queueing.
    """
    trajectory = rollout.trajectory
    turns, chat = trajectory.turns, trajectory.chat
    usage = (None if chat is None else chat.usage) or {
        "prompt": len(trajectory.prompt_ids),
        "sampled": sum(len(turn.action.token_ids) for turn in turns),
        "observed": sum(len(turn.observation_ids) for turn in turns),
    }
    generation = sum(turn.timing.generation for turn in turns)
    execution = sum(turn.timing.execution for turn in turns)
    # What follows a submit is not run.
    answered = (pair for turn in turns for pair in zip(turn.calls, turn.observations, strict=False))
    failures = (o.failure.value for turn in turns for o in turn.observations if o.failure is not None)
    return {
        "turns": len(turns),
        **{f"tokens/{name}": usage[name] for name in ("prompt", "sampled", "observed")},
        "seconds/episode": trajectory.seconds,
        "seconds/generation": generation,
        "seconds/execution": execution,
        "seconds/scoring": rollout.reward.seconds,
        "seconds/waiting": max(0.0, trajectory.seconds - generation - execution),
        **Counter(f"calls/{_tool_of(c, o)}" for c, o in answered if isinstance(c, ToolCall)),
        **Counter(f"failures/{kind}" for kind in failures),
    }


def mean_counts(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of `episode_counts` over episodes, one at least, and the share of tokens that was observed."""
    names = sorted({name for found in counts for name in found})
    totals = {name: fsum(found.get(name, 0) for found in counts) for name in names}
    tokens = totals["tokens/sampled"] + totals["tokens/observed"]
    means = {name: total / len(counts) for name, total in totals.items()}
    return means | {"tokens/observed_share": totals["tokens/observed"] / max(1, tokens)}


def _tool_of(call: ToolCall, answer: Observation) -> str:
    """The policy chooses the names that it calls: only those of tools that exist may become metric names."""
    return "unknown" if answer.failure is ToolFailure.UNKNOWN_TOOL else call.name
