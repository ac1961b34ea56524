"""Numbers with their uncertainty. A task is the unit of chance: its samples are not independent.

One interval serves everything that is reported: Wilson's, with the number of tasks that the spread among task
means is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sandbox_rl.metrics import pass_at_k

NORMAL = 1.959964
"""The 97.5 % point of the normal distribution."""

FEW = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}
"""The same of Student's, by degrees of freedom, where the series is too short."""


@dataclass(frozen=True, slots=True)
class Mean:
    """avg@k over `tasks` tasks with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        """Such as "80.0 % [58.4, 91.9]"."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Difference(Mean):
    """Mean of first minus second over the tasks that both have, with its 95 % interval, all in [-1, 1]."""

    def __str__(self) -> str:
        """Such as "+25.0 points [-3.1, +49.0]"."""
        return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def interval(values: Sequence[float], *, bottom: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of the mean of independent values in [bottom, 1].

    Wilson's score interval (1927) with n p (1 - p) / s² in the place of n, s² being the variance of the
    values: the number of zeros and ones that would tell as much (the effective sample size of Korn and
    Graubard, Survey Methodology 1998). Of zeros and ones it is n and the interval is Wilson's own; else s² is
    an estimate, and Student's quantile with n - 1 degrees of freedom stands for the normal one.

    Where all values are alike s² says nothing. Then up to z² / (n + z²) of all others may differ, the upper
    end of Wilson's interval for what none of n showed, and may be anything between `bottom` and 1: of n
    ones this is Wilson's interval again.
    """
    count = len(values)
    width = 1 - bottom
    share = [(value - bottom) / width for value in values]
    mean = fmean(share)
    variance = fmean((value - mean) ** 2 for value in share)
    if variance < 1e-12:
        unseen = NORMAL**2 / (count + NORMAL**2)
        low, high = mean * (1 - unseen), mean + (1 - mean) * unseen
    else:
        size, quantile = count * mean * (1 - mean) / variance, NORMAL
        if size > count * (1 + 1e-9):
            size, quantile = size * (count - 1) / count, _student(count - 1)
        square = quantile**2 / size
        middle = (mean + square / 2) / (1 + square)
        half = quantile / (1 + square) * math.sqrt(mean * (1 - mean) / size + square / (4 * size))
        low, high = max(0.0, middle - half), min(1.0, middle + half)
    return bottom + low * width, bottom + high * width


def mean_over_tasks(means: Sequence[float]) -> Mean | None:
    """Mean of task means with its `interval`; None of nothing."""
    return Mean(fmean(means), *interval(means), len(means)) if means else None


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


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """Mean of the differences task by task, with its `interval`.

    Args:
        first, second: task id → mean reward of its samples.

    Returns:
        None where no task is in both.
    """
    gaps = [first[task] - second[task] for task in sorted(first.keys() & second.keys())]
    return Difference(fmean(gaps), *interval(gaps, bottom=-1.0), len(gaps)) if gaps else None


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's distribution (Abramowitz and Stegun 26.7.5, to 0.2 %)."""
    if freedom in FEW:
        return FEW[freedom]
    z = NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
