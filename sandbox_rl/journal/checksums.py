"""A checksum at the end of each line: the CRC-32 of everything before it, so that no byte changes unseen.

`{"event":…}` is written as `{"event":…,"crc":"0123abcd"}`, which is JSON still. The numbers of a line's
columns have a checksum of their own in it.
"""

from __future__ import annotations

import re
import zlib

__all__ = ["has_checksum", "is_as_written", "with_checksum"]

_END = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n')
_SIZE = len(b',"crc":"01234567"}\n')


def with_checksum(value: bytes) -> bytes:
    """A JSON object, with fields, as a line."""
    return b'%b,"crc":"%08x"}\n' % (value[:-1], zlib.crc32(memoryview(value)[:-1]))


def has_checksum(line: bytes) -> bool:
    """Whether a line ends with one; those that were written before there were any do not."""
    return _END.fullmatch(line[-_SIZE:]) is not None


def is_as_written(line: bytes) -> bool | None:
    """Whether a line is what its checksum says; None where it has none."""
    found = _END.fullmatch(line[-_SIZE:])
    return None if found is None else zlib.crc32(memoryview(line)[:-_SIZE]) == int(found[1], 16)
