"""Episodes that could not be judged: some are an alarm, too many end a run, each with the commonest cause."""

from __future__ import annotations

import re
from collections import Counter, deque

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.types import Rollout

WINDOW = 64
"""Episodes that the share is taken over."""
FEWEST = 16
"""Episodes below which a share says nothing."""
ALARM_WINDOW = 50
"""Episodes that the alarm's share is taken over."""
ALARM_SHARE = 0.05
"""Above this share something is wrong with the machine, though a run can go on."""


class _Last:
    """The last episodes, each with why it could not be judged. Added to from any thread."""

    def __init__(self, size: int) -> None:
        self._last: deque[str | None] = deque(maxlen=size)

    def add(self, episode: Rollout | str | None) -> None:
        """One more has ended, was judged (None), or failed for the reason given.

        What the recipe masks counts neither way.
        """
        if not isinstance(episode, Rollout):
            self._last.append(episode)
        elif not episode.reward.masked:
            self._last.append(None if episode.reward.value is not None else why_not_judged(episode))

    def above(self, share: float, limit: str, *, of_at_least: int) -> str:
        """What there is to say of more faults than this share, which is called `limit`; else ""."""
        last = tuple(self._last)
        faults = [why for why in last if why is not None]
        if len(last) < of_at_least or len(faults) <= share * len(last):
            return ""
        kinds = Counter(_kind(why) for why in faults)
        commonest, count = kinds.most_common(1)[0]
        words = " ".join(next(why for why in faults if _kind(why) == commonest).split())[:300]
        return (
            f"{len(faults)} of the last {len(last)} episodes could not be judged, more than {limit}; the "
            f"commonest cause ({count}): {words}"
        )


class FaultWatch(_Last):
    """The share of the last episodes without a reward, and why.

    Args:
        most: the share above which a run should stop.
    """

    def __init__(self, most: float) -> None:
        super().__init__(WINDOW)
        self._most = most
        self._cause = ""

    def cause(self) -> str:
        """Why the run should stop, "" while it need not; once given it stands.

        Asked between steps, not after each episode: faults may end sooner than honest work.
        """
        limit = f"reward.max_fault_share {self._most:g}"
        self._cause = self._cause or self.above(self._most, limit, of_at_least=FEWEST)
        return self._cause


class FaultAudit(_Last):
    """Sounds the alarm `infra_faults` while more of the last episodes failed on our side than happens."""

    def __init__(self, alarms: Alarms) -> None:
        super().__init__(ALARM_WINDOW)
        self._alarms = alarms

    def look(self, step: int) -> None:
        """At the end of a step."""
        if said := self.above(ALARM_SHARE, f"{ALARM_SHARE:.0%}", of_at_least=ALARM_WINDOW):
            self._alarms.sound(step, AlarmName.INFRA_FAULTS, said)


def why_not_judged(rollout: Rollout) -> str:
    """Of one without a reward, in words."""
    return rollout.trajectory.fault or rollout.reward.detail or rollout.trajectory.stop.value


def _kind(why: str) -> str:
    """Causes that differ in numbers and quoted names alone are one."""
    return re.sub(r"'[^']*'|\d+", "#", why)
