"""Which samples of which groups are in finished updates: what a checkpoint says about the data.

A group's number decides its task and its seeds. It goes through

    admitted (number, weight version) → arrived (its samples, or why one is left out) → packed → used

and is *behind us* once every one of its samples is used or left out for a named reason. Only a finished
optimizer step makes packed samples used: what was collated, looked ahead at or is being computed when a
process dies is not. A resumed run starts with the lowest number that is not behind it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sandbox_rl.errors import ModelError
from sandbox_rl.training.samples import FinishedGroup, LeftOut, Sample

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
        self._packed: set[tuple[int, int]] = set()
        self._used: dict[int, set[int]] = {}
        self.ends: Counter[str] = Counter()
        """Samples by how they ended, since the run began: `used`, or the reason."""

    # --- the way of a group ---------------------------------------------------------------------------

    def admit(self, version: int) -> int:
        """The next number that may be sampled, from now on with weights not older than `version`."""
        while self._is_behind(self._next) or self._next in self._admitted:
            self._next += 1
        self._admitted[self._next] = version
        return self._next

    def arrive(self, group: FinishedGroup) -> FinishedGroup:
        """Take over a group whose episodes have ended; returns it without samples that are used already.

        Raises:
            ValueError: nobody admitted it, or it came before.
        """
        if group.number not in self._admitted or group.number in self._arrived:
            raise ValueError(f"group {group.number} was not admitted, or came twice")
        before = self._used.get(group.number, set())
        rest = replace(
            group,
            samples=tuple(s for s in group.samples if s.index not in before),
            left_out=dict(group.left_out) | dict.fromkeys(before, LeftOut.USED_BEFORE),
        )
        self._arrived[group.number] = rest
        self.ends.update(str(why) for why in rest.left_out.values() if why is not LeftOut.USED_BEFORE)
        self._pass(group.number)
        return rest

    def pack(self, samples: Iterable[Sample]) -> None:
        """These samples are in the update that is being computed."""
        self._packed.update((sample.group, sample.index) for sample in samples)

    def finish_update(self) -> set[int]:
        """The optimizer has taken the step that the packed samples are in; returns their groups."""
        packed, self._packed = self._packed, set()
        self.ends["used"] += len(packed)
        for group, index in packed:
            self._used.setdefault(group, set()).add(index)
        groups = {group for group, _ in packed}
        for group in groups:
            self._pass(group)
        return groups

    def _pass(self, number: int) -> None:
        """Put a group behind us if nothing of it is left to train on."""
        group, used = self._arrived.get(number), self._used.get(number, set())
        if group is None:
            return
        if rest := tuple(sample for sample in group.samples if sample.index not in used):
            self._arrived[number] = replace(group, samples=rest)
            return
        del self._arrived[number], self._admitted[number]
        self._used.pop(number, None)
        self._behind.add(number)
        while self._behind_before in self._behind:
            self._behind.remove(self._behind_before)
            self._behind_before += 1

    def _is_behind(self, number: int) -> bool:
        return number < self._behind_before or number in self._behind

    # --- what is where --------------------------------------------------------------------------------

    @property
    def running(self) -> Mapping[int, int]:
        """Numbers whose episodes have not all ended → the version that they were admitted with."""
        return {n: version for n, version in self._admitted.items() if n not in self._arrived}

    @property
    def waiting(self) -> list[tuple[int, FinishedGroup]]:
        """(version, group) of those that have arrived and are in no update yet, the oldest first."""
        packed = {group for group, _ in self._packed}
        found = [(self._admitted[n], group) for n, group in self._arrived.items() if n not in packed]
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
            "partly": {str(group): sorted(used) for group, used in sorted(self._used.items())},
            "under_way": sorted(self._admitted),
            "ends": dict(sorted(self.ends.items())),
        }
        (checkpoint / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint: Path) -> frozenset[int]:
        """Go on from a checkpoint; returns the groups that it has behind it.

        Of a group that is partly used all episodes are sampled again, from the same seeds, and those not used
        yet are trained on.

        Raises:
            ModelError: the file is missing or not one of ours.
        """
        path = checkpoint / STATE_FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self._behind_before, self._behind = int(state["first"]), {int(n) for n in state["ahead"]}
            self._used = {int(n): {int(i) for i in used} for n, used in state["partly"].items()}
            self.ends = Counter({str(name): int(count) for name, count in state["ends"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"--resume: {path} does not hold the groups behind the checkpoint ({type(error).__name__}); "
                "resume with mode: async only what was started so, or remove that checkpoint"
            ) from error
        self._next = self._behind_before
        return self.behind
