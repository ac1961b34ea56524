"""Which groups of an asynchronous run may start, which make the next update, and which are behind it.

A group's number decides its task and its seeds. It goes through

    admitted (number, weight version) → arrived (its samples, or why one is left out) → packed → behind us

Groups are packed whole. Only a finished optimizer step puts them behind us: what was collated, looked ahead
at or is being computed when a process dies is not used. A group of which nothing can be trained on is behind
us with the next update that finishes, in whose line of the ledger it stands. A resumed run starts with the
lowest number that is not behind it.

Staleness comes without a choice by length: nothing is dropped, so nothing is chosen.

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

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

from sandbox_rl.ledger import Group
from sandbox_rl.outputs import restoring
from sandbox_rl.training.samples import FinishedGroup

STATE_FILE = "groups.json"
"""Name of the state's file in a checkpoint."""


class GroupProgress:
    """The groups of a run on their way; on the main process, in one thread."""

    def __init__(self) -> None:
        self._behind_before = 0  # all numbers below are behind us
        self._behind: set[int] = set()
        self._next = 0
        self._admitted: dict[int, int] = {}
        self._arrived: dict[int, FinishedGroup] = {}
        self._packed: set[int] = set()

    # --- the way of a group ---------------------------------------------------------------------------

    def admit(self, version: int) -> int:
        """The next number that may be sampled, from now on with weights not older than `version`."""
        behind = self._behind_before
        while self._next < behind or self._next in self._behind or self._next in self._admitted:
            self._next += 1
        self._admitted[self._next] = version
        return self._next

    def admit_again(self, number: int, version: int) -> None:
        """This group was sampled, with weights not older than `version`, before the run was resumed."""
        self._admitted[number] = version

    def arrive(self, group: FinishedGroup) -> None:
        """Take over a group whose episodes have ended.

        Raises:
            ValueError: nobody admitted it, or it came before.
        """
        if group.number not in self._admitted or group.number in self._arrived:
            raise ValueError(f"group {group.number} was not admitted, or came twice")
        self._arrived[group.number] = group

    def pack(self, groups: Iterable[FinishedGroup]) -> None:
        """These groups are in the update that is being computed."""
        self._packed.update(group.number for group in groups)

    def finish_update(self, *, left_out: bool = False) -> list[Group]:
        """The update that the packed groups are in has finished.

        Args:
            left_out: its gradient was not finite, and it changed no weight.

        Returns:
            What the ledger gets: those, and the groups that have arrived with nothing to train on.
        """
        empty = {number for number, group in self._arrived.items() if not group.samples}
        ended, self._packed = self._packed | empty, set()
        records = []
        for number in sorted(ended):
            record = self._arrived.pop(number).record
            records.append(record.not_finite() if left_out else record)
            del self._admitted[number]
            self._behind.add(number)
        while self._behind_before in self._behind:
            self._behind.remove(self._behind_before)
            self._behind_before += 1
        return records

    # --- what is where --------------------------------------------------------------------------------

    @property
    def running(self) -> Mapping[int, int]:
        """Numbers whose episodes have not all ended → the version that they were admitted with."""
        return {n: version for n, version in self._admitted.items() if n not in self._arrived}

    @property
    def waiting(self) -> list[tuple[int, FinishedGroup]]:
        """(version, group) of those that have arrived with something to train on and are in no update yet,
        the oldest first."""
        found = [
            (self._admitted[n], group)
            for n, group in self._arrived.items()
            if group.samples and n not in self._packed
        ]
        return sorted(found, key=lambda entry: (entry[0], entry[1].number))

    @property
    def updating(self) -> bool:
        """Whether an update is being computed."""
        return bool(self._packed)

    @property
    def behind(self) -> frozenset[int]:
        """Numbers of groups that are behind us."""
        return frozenset(range(self._behind_before)) | frozenset(self._behind)

    # --- checkpoints ----------------------------------------------------------------------------------

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint's directory, before its manifest. What is packed counts as not used."""
        state = {"first": self._behind_before, "ahead": sorted(self._behind)}
        (checkpoint / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint: Path) -> frozenset[int]:
        """Go on from a checkpoint; returns the groups that it has behind it.

        Raises:
            ModelError: the file is missing or not one of ours.
        """
        advice = "resume with mode: async only what was started so, or remove that checkpoint"
        with restoring(checkpoint / STATE_FILE, "the groups behind the checkpoint", advice) as state:
            self._behind_before, self._behind = int(state["first"]), {int(n) for n in state["ahead"]}
        self._next = self._behind_before
        return self.behind


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
