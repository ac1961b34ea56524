"""Which groups are behind an asynchronous run: what its ledger gets with each update, and its checkpoints.

A group's number decides its task and its seeds. It goes through

    admitted (number, weight version) → arrived (its samples, or why one is left out) → packed → behind us

Groups are packed whole. Only a finished optimizer step puts them behind us: what was collated, looked ahead
at or is being computed when a process dies is not used. A group of which nothing can be trained on is behind
us with the next update that finishes, in whose line of the ledger it stands. A resumed run starts with the
lowest number that is not behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from sandbox_rl.errors import ModelError
from sandbox_rl.ledger import Group
from sandbox_rl.training.samples import FinishedGroup

__all__ = ["STATE_FILE", "GroupProgress"]

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
        while self._is_behind(self._next) or self._next in self._admitted:
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

    def _is_behind(self, number: int) -> bool:
        return number < self._behind_before or number in self._behind

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
        state = {
            "first": self._behind_before,
            "ahead": sorted(self._behind),
            "under_way": sorted(self._admitted),
        }
        (checkpoint / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint: Path) -> frozenset[int]:
        """Go on from a checkpoint; returns the groups that it has behind it.

        Raises:
            ModelError: the file is missing or not one of ours.
        """
        path = checkpoint / STATE_FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self._behind_before, self._behind = int(state["first"]), {int(n) for n in state["ahead"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"--resume: {path} does not hold the groups behind the checkpoint ({type(error).__name__}); "
                "resume with mode: async only what was started so, or remove that checkpoint"
            ) from error
        self._next = self._behind_before
        return self.behind
