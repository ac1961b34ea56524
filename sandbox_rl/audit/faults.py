"""Episodes that could not be judged: too many of them, and a run ends with the cause."""

from __future__ import annotations

import re
from collections import Counter, deque

from sandbox_rl.types import Rollout

__all__ = ["FaultWatch"]

WINDOW = 64
"""Episodes that the share is taken over."""
FEWEST = 16
"""Episodes below which a share says nothing."""


class FaultWatch:
    """The share of the last episodes without a reward, and why. Added to from any thread.

    Args:
        most: the share above which a run should stop.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._last: deque[str | None] = deque(maxlen=WINDOW)
        self._cause = ""

    def add(self, episode: Rollout | str) -> None:
        """One more has ended, or failed for the reason given. What the recipe masks counts neither way."""
        if isinstance(episode, str):
            self._last.append(episode)
        elif not episode.reward.masked:
            judged = episode.reward.value is not None
            why = episode.trajectory.fault or episode.reward.detail or episode.trajectory.stop.value
            self._last.append(None if judged else why)

    def cause(self) -> str:
        """Why the run should stop, "" while it need not; once given it stands.

        Asked between steps, not after each episode: faults may end sooner than honest work.
        """
        last = tuple(self._last)
        faults = [why for why in last if why is not None]
        if self._cause or len(last) < FEWEST or len(faults) <= self._most * len(last):
            return self._cause
        kinds = Counter(_kind(why) for why in faults)
        commonest, count = kinds.most_common(1)[0]
        words = " ".join(next(why for why in faults if _kind(why) == commonest).split())[:300]
        self._cause = (
            f"{len(faults)} of the last {len(last)} episodes could not be judged, more than "
            f"reward.max_fault_share {self._most:g}; the commonest cause ({count}): {words}"
        )
        return self._cause


def _kind(why: str) -> str:
    """Causes that differ in numbers and quoted names alone are one."""
    return re.sub(r"'[^']*'|\d+", "#", why)
