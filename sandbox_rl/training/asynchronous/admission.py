"""Staleness without a choice by length: nothing is dropped, so nothing is chosen.

The *age* of a token in an update is the number of updates between the weights that sampled it and those that
the update starts from. `max_staleness` bounds the age of **every** token of **every** update. Dropping what
is older would keep the bound too, but an episode that lasts long is the likelier to be dropped: training
would see short episodes, and groups without their slowest samples. Here the bound is kept by waiting:

1. **Admission is paused** while as much is under way as can be trained in time: at most `max_staleness`
   updates' worth of groups, and at most one update's worth beyond those that run. (AReaL bounds admission
   likewise, arXiv 2505.24298, section 4; tinker-cookbook's `sampling_steps_ahead` as well.)
2. **The oldest go first**, by the version that a group was admitted with.
3. **The update is held** while a group is still running that would be too old for the next one. It then
   contains every such group, even if it has to be larger than usual.

Every number that is admitted is trained on exactly once (or left out for a reason that is named and is not
its length), so the lengths trained on are the lengths sampled. Groups are never split between updates: their
advantages are over samples that are trained together. What the bound costs is time: the trainer waits for an
episode that lasts longer than `max_staleness` updates. The ratio to the log-probs of the very weights that
sampled a token corrects, per token and clipped, for what age is left.
"""

from __future__ import annotations

import math
from collections import deque

from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.samples import FinishedGroup

__all__ = ["MAX_STALENESS", "Admission"]

MAX_STALENESS = 4
"""Updates that any trained token may be old: the update waits rather than train on an
older one, and nothing is dropped. 0: sampling and updates take turns. Lower is nearer to on-policy, higher
waits less for episodes that outlast several updates."""

REMEMBERED = 64
"""Groups whose mean size tells how many make an update."""


class Admission:
    """Decides what may start and what the next update consists of. Knows no clock, queue or tensor.

    Args:
        progress: the groups; nobody else admits or packs.
        max_staleness: updates that any trained token may be old.
        tokens: of a usual update.
        at_once: groups that run side by side.
    """

    def __init__(self, progress: GroupProgress, *, max_staleness: int, tokens: int, at_once: int) -> None:
        self._progress = progress
        self._max_staleness = max_staleness
        self._tokens = tokens
        self._at_once = at_once
        self._sizes: deque[int] = deque(maxlen=REMEMBERED)

    def arrive(self, group: FinishedGroup) -> None:
        """A group's episodes have ended."""
        self._progress.arrive(group)
        if group.samples:
            self._sizes.append(group.tokens)

    def version_of(self, number: int) -> int:
        """That a group which has not arrived yet was admitted with; -1 of any other."""
        return self._progress.running.get(number, -1)

    def admit(self, step: int, version: int) -> list[int]:
        """Numbers that may start now.

        Args:
            step: updates that are finished.
            version: of the weights that are sampled with.
        """
        earliest = step + self._progress.updating
        if earliest - version > self._max_staleness:
            return []  # too old before it could be trained on: wait for newer weights
        places = self.places - len(self._progress.running) - len(self._progress.waiting)
        return [self._progress.admit(version) for _ in range(places)]

    @property
    def places(self) -> int:
        """Groups that may run or wait, beside those in the update that is being computed."""
        if not self._sizes:
            return self._at_once
        update = max(1.0, self._tokens * len(self._sizes) / sum(self._sizes))  # groups in one
        return math.floor(min(max(1, self._max_staleness) * update, self._at_once + update))

    @property
    def idle(self) -> int:
        """Groups that there is capacity for beside those that may run, once sizes are known well enough."""
        return self._at_once - self.places if len(self._sizes) >= self._at_once else 0

    def ready(self, step: int) -> bool:
        """Whether the update from `step` can start: full, or nothing more will come, and none is missing that
        must be in it."""
        running = self._progress.running
        if any(version <= step - self._max_staleness for version in running.values()):
            return False
        waiting = [group.tokens for _, group in self._progress.waiting]
        return bool(waiting) and (sum(waiting) >= self._tokens or not running)

    def compose(self, step: int) -> list[FinishedGroup]:
        """The groups of the update from `step`, packed: the oldest that fit, and all that must."""
        chosen: list[FinishedGroup] = []
        size = 0
        for version, group in self._progress.waiting:
            due = version <= step - self._max_staleness
            if chosen and not due and size + group.tokens > self._tokens:
                break
            chosen.append(group)
            size += group.tokens
        samples = [sample for group in chosen for sample in group.samples]
        oldest = max(int(sample.ages(step).max()) for sample in samples)
        assert oldest <= self._max_staleness, f"a token of age {oldest} at step {step}"
        self._progress.pack(chosen)
        return chosen
