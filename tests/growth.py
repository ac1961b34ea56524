"""How the cost of some work grows, which says more than a clock does, and says it on any machine."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["assert_linear"]

TIMES = 8


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Work on `size` takes about 8 times the processor time of an eighth; what is quadratic takes 64 times.

    Args:
        size: enough that an eighth of it takes a millisecond or more.
    """
    ratio = _seconds(work, size) / _seconds(work, size // TIMES)
    assert ratio < TIMES * TIMES / 2, f"{TIMES} times the size took {ratio:.0f} times as long"


def _seconds(work: Callable[[int], object], size: int) -> float:
    """The least of three, since only disturbances add."""
    found = []
    for _ in range(3):
        started = time.thread_time()
        work(size)
        found.append(time.thread_time() - started)
    return max(min(found), 1e-4)
