"""What updates made of sampled tokens: a column beside the journal, a line per update and process.

A process writes two files of its own in `trained/`, as it does in `journal/`:

- `<start>-<process>.jsonl`: a line per update with its rows: episode, its first token (counted among those
  that were sampled), how many, and their largest gradient.
- `<start>-<process>.values`: for each row the trainer's log-probs (float32), then its gradients as parts of
  the largest (float16), little-endian: 6 bytes a token. The values are written before their line.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sandbox_rl.journal.columns import ColumnError
from sandbox_rl.outputs import append_line

DIRECTORY = "trained"
"""Its name in the run's directory."""
BYTES = 6
"""A token."""


@dataclass(frozen=True, slots=True)
class TrainedRow:
    """Sampled tokens of one episode in the loss of one update. The arrays have the shape (N,), float32.

    Args:
        first: place of the first of them among the episode's sampled tokens.
        log_probs: the trainer's, in nats, when the loss was computed.
        gradients: of the update's loss with respect to the log-probs; negative where the update makes the
            token likelier.
    """

    episode: str
    first: int
    log_probs: NDArray[np.float32]
    gradients: NDArray[np.float32]


class TrainedTokens:
    """One process's part; its files are made with the first update.

    Args:
        directory: of all processes of a run.
        start: which start of the run this is.
        process: number of this process.
    """

    def __init__(self, directory: Path, *, start: int, process: int) -> None:
        self._stem = directory / f"{start:04d}-{process:04d}"

    def write(self, update: int, rows: Sequence[TrainedRow]) -> None:
        """Add the rows of an update of this process; several of one episode are parts of it.

        Raises:
            OSError: the file system refuses.
        """
        self._stem.parent.mkdir(exist_ok=True)
        scales = [float(np.abs(row.gradients).max(initial=0.0)) for row in rows]
        content = b"".join(_packed(row, scale) for row, scale in zip(rows, scales, strict=True))
        total = float(sum(np.abs(row.gradients).sum(dtype=np.float64) for row in rows))
        with self._stem.with_suffix(".values").open("ab") as values:
            at = values.tell()
            values.write(content)
        line = {
            "update": update,
            "at": at,
            "crc": zlib.crc32(content),
            "gradient": total,
            "rows": [
                (row.episode, row.first, len(row.log_probs), scale)
                for row, scale in zip(rows, scales, strict=True)
            ],
        }
        append_line(self._stem.with_suffix(".jsonl"), orjson.dumps(line))


def read_rows(directory: Path, writer: str, line: dict[str, Any]) -> list[TrainedRow]:
    """The rows of an update that a line of `<writer>.jsonl` names; gradients to 3 digits.

    Raises:
        ColumnError: the values are not those that were written.
        OSError: they cannot be read.
    """
    size = BYTES * sum(int(count) for _, _, count, _ in line["rows"])
    with (directory / f"{writer}.values").open("rb") as values:
        content = os.pread(values.fileno(), size, line["at"])
    if len(content) != size or zlib.crc32(content) != line["crc"]:
        raise ColumnError(
            f"{directory / writer}.values: {len(content)} bytes at {line['at']}, expected {size} with "
            f"checksum {line['crc']:08x}; the file was cut or changed"
        )
    rows, at = [], 0
    for episode, first, count, scale in line["rows"]:
        log_probs = np.frombuffer(content, "<f4", count, at)
        parts = np.frombuffer(content, "<f2", count, at + 4 * count).astype(np.float32)
        # Of a gradient that is not finite there is no largest: JSON has no number for it either.
        rows.append(TrainedRow(episode, first, log_probs, parts * (np.nan if scale is None else scale)))
        at += BYTES * count
    return rows


def _packed(row: TrainedRow, scale: float) -> bytes:
    with np.errstate(invalid="ignore"):
        parts = row.gradients / scale if scale else row.gradients
    return row.log_probs.astype("<f4").tobytes() + parts.astype("<f2").tobytes()
