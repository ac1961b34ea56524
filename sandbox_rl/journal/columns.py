"""Token columns, binary numbers beside the readable text, and checksums, so that no byte changes unseen.

Ids are unsigned 32-bit, log-probs IEEE float32, both little-endian: 4 bytes for a token that was observed, 8
for one that was sampled. float32 is what engines compute and what the trainer reads, so nothing is lost.

A line ends with the CRC-32 of everything before it: `{"event":…}` is written as
`{"event":…,"crc":"0123abcd"}`, which is JSON still. The numbers of its columns have a checksum of their own.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class ColumnError(ValueError):
    """The bytes are not those that were written: the file was cut or changed."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the numbers of one event lie.

    Args:
        at: offset in the token file, in bytes.
        lengths: of each column of ids, in order.
        logprobs: how many log-probs follow them.
        crc: CRC-32 of all the bytes.
    """

    at: int
    lengths: tuple[int, ...]
    logprobs: int
    crc: int

    @property
    def size(self) -> int:
        """In bytes."""
        return 4 * (sum(self.lengths) + self.logprobs)


def pack(ids: Sequence[Sequence[int]], logprobs: Sequence[float], at: int) -> tuple[bytes, Columns]:
    """The bytes of some columns of ids and one of log-probs, to be written at `at`.

    Raises:
        ValueError: an id outside 32 bits, or a log-prob that is not finite.
    """
    values = np.asarray(logprobs, dtype="<f4")
    if not np.isfinite(values).all():
        raise ValueError("a log-prob is not finite; a journal holds numbers only")
    try:
        parts = [np.asarray(column, dtype="<u4").tobytes() for column in ids]
    except OverflowError as error:
        raise ValueError(f"a token id does not fit into 32 bits: {error}") from error
    content = b"".join((*parts, values.tobytes()))
    return content, Columns(at, tuple(len(c) for c in ids), len(logprobs), zlib.crc32(content))


def unpack(content: bytes, columns: Columns) -> tuple[list[tuple[int, ...]], tuple[float, ...]]:
    """The columns of ids, and the log-probs.

    Raises:
        ColumnError: they are not what was written.
    """
    if len(content) != columns.size or zlib.crc32(content) != columns.crc:
        raise ColumnError(
            f"{len(content)} bytes at {columns.at}, expected {columns.size} with checksum {columns.crc:08x}; "
            "the token file was cut or changed"
        )
    found: list[tuple[int, ...]] = []
    at = 0
    for length in columns.lengths:
        found.append(tuple(np.frombuffer(content, "<u4", length, at).tolist()))
        at += 4 * length
    return found, tuple(np.frombuffer(content, "<f4", columns.logprobs, at).tolist())


_END = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n')
_SIZE = len(b',"crc":"01234567"}\n')


def with_checksum(value: bytes) -> bytes:
    """A JSON object, with fields, as a line."""
    return b'%b,"crc":"%08x"}\n' % (value[:-1], zlib.crc32(memoryview(value)[:-1]))


def is_as_written(line: bytes) -> bool | None:
    """Whether a line is what its checksum says; None where it has none, as before there were any."""
    found = _END.fullmatch(line[-_SIZE:])
    return None if found is None else zlib.crc32(memoryview(line)[:-_SIZE]) == int(found[1], 16)
