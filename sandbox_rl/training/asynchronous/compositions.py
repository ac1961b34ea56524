"""What each update of an asynchronous run was composed of: enough to compute it again from the journal.

Asynchronous training depends on what arrives when. That, and how it was packed, is all that an update's
arithmetic does not follow from the recipe and the journal; it is written down here, some bytes per sample, in
a file beside the ledger, one line per finished update. A line replaces all of its number and after it: a run
that is resumed does those updates again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from pydantic import TypeAdapter
from trl.experimental.async_grpo.packing import TreeRow

from sandbox_rl.errors import DataError
from sandbox_rl.outputs import append_line

FILE = "compositions.jsonl"
"""Its name in the run's directory."""

Part = tuple[int, int, str]
"""Group, index of the sample, and which part of it: "" all, else a path of halves, "a" the first."""


@dataclass(frozen=True, slots=True)
class Composition:
    """One update.

    Args:
        number: counted from 1.
        arrived: (group, version that it was admitted with), in the order of arrival, since the update before.
        groups: in it, in the order in which they were composed.
        ranks: rows of a micro-batch.
        rows: packed samples, in the order of the rows; each `ranks` of them are a micro-batch.
        checksum: of all its tensors, see `checksum`.
    """

    number: int
    arrived: tuple[tuple[int, int], ...]
    groups: tuple[int, ...]
    ranks: int
    rows: tuple[tuple[Part, ...], ...]
    checksum: int


_LINE = TypeAdapter(Composition)


class CompositionLog:
    """Writes the file, on the main process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrived: list[tuple[int, int]] = []
        self._pending: Composition | None = None

    def arrived(self, group: int, version: int) -> None:
        """A group has arrived that was admitted with this version."""
        self._arrived.append((group, version))

    def composed(
        self,
        number: int,
        groups: Sequence[int],
        micro_batches: Sequence[Sequence[TreeRow]],
        tensors: Sequence[Mapping[str, Any]],
    ) -> None:
        """An update is about to be computed."""
        rows = [row for batch in micro_batches for row in batch]
        self._pending = Composition(
            number,
            tuple(self._arrived),
            tuple(groups),
            len(micro_batches[0]),
            tuple(parts_of(row) for row in rows),
            checksum(tensors),
        )
        self._arrived = []

    def finished(self) -> None:
        """The optimizer has taken the step: write its line.

        Raises:
            OSError: the file system refuses.
        """
        if self._pending is None:
            return
        append_line(self._path, orjson.dumps(self._pending), to_disk=True)
        self._pending = None


def read_compositions(path: Path) -> dict[int, Composition]:
    """The updates that stand, by number.

    Raises:
        DataError: there is no such file.
    """
    found: dict[int, Composition] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError):  # a kill has torn it
                    update = _LINE.validate_json(line)
                    found = {n: u for n, u in found.items() if n < update.number} | {update.number: update}
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}, expected what an asynchronous run writes of its updates; "
            "only a run that has it can be computed again"
        ) from error
    return found


def parts_of(row: TreeRow) -> tuple[Part, ...]:
    """What a row holds, in order."""
    return tuple((s["group_id"], s["index"], s.get("part", "")) for s in row.samples)


def checksum(micro_batches: Sequence[Mapping[str, Any]]) -> int:
    """CRC-32 of all tensors of an update: names, types, shapes and bytes."""
    crc = 0
    for batch in micro_batches:
        for name in sorted(batch):
            value = batch[name]
            crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)};".encode(), crc)
            crc = zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return crc
