"""Numbers with their uncertainty. A task is the unit of chance: its samples are not independent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from sandbox_rl.metrics import pass_at_k

__all__ = ["Difference", "Mean", "mean_over_tasks", "paired_difference", "pass_at"]

RESAMPLES = 10_000
"""Bootstrap resamples; the ends of the interval then vary by about a hundredth of its width."""

BATCH = 1_000_000
"""Indices drawn at a time, so that 10,000 tasks need no gigabyte."""


@dataclass(frozen=True, slots=True)
class Mean:
    """avg@k over N tasks: `value` ± `half_width` is its 95 % interval (None for fewer than two tasks)."""

    value: float
    half_width: float | None
    tasks: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of first minus second over the tasks that both have, with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    tasks: int


def mean_over_tasks(means: Sequence[float]) -> Mean | None:
    """Mean of task means with the normal interval 1.96 s / √N; None of nothing.

    Where all tasks came out alike s = 0 says nothing; then the rule of three, 3 / N, is the half width
    (Hanley and Lippman-Hand 1983: no failure in N trials leaves rates up to 3 / N at 95 %).
    """
    if not means:
        return None
    if len(means) == 1:
        return Mean(means[0], None, 1)
    spread = stdev(means)
    half = 1.96 * spread / math.sqrt(len(means)) if spread > 1e-12 else min(1.0, 3 / len(means))
    return Mean(fmean(means), half, len(means))


def pass_at(counts: Sequence[tuple[int, int]]) -> dict[int, float]:
    """Unbiased pass@k for k = 1, 2, 4 … and the number of samples that every task has.

    Args:
        counts: (samples, samples that solved it) of each task.
    """
    if not counts:
        return {}
    most = min(samples for samples, _ in counts)
    ks = sorted({1 << power for power in range(most.bit_length()) if 1 << power <= most} | {most})
    return {k: fmean(pass_at_k(n, c, k) for n, c in counts) for k in ks}


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0
) -> Difference | None:
    """Paired percentile bootstrap over tasks (Efron & Tibshirani 1993, chapter 13).

    Args:
        first, second: task id → mean reward of its samples.

    Returns:
        None where no task is in both.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    gaps = np.array([first[task] - second[task] for task in shared])
    generator = np.random.default_rng(seed)
    means: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
    left, rows = RESAMPLES, max(1, BATCH // len(gaps))
    while left > 0:
        take = min(rows, left)
        means.append(gaps[generator.integers(0, len(gaps), size=(take, len(gaps)))].mean(axis=1))
        left -= take
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Difference(float(gaps.mean()), float(low), float(high), len(shared))
