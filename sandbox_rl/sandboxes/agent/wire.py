"""Frames between host and agent.

A frame is `length` (4 bytes, big endian, of what follows), `request id` (4 bytes), `code` (1 byte:
an operation in a request, a status in a reply) and then fields, each `length` (4 bytes) and bytes.
Integers travel as ASCII decimals. There is no text format to parse and nothing is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

HEADER = 4
MAX_REQUEST = 96 << 20  # bytes; the host splits what is larger
MAX_FIELDS = 1 << 18

EXEC, READ, WRITE, LIST, ANSWER, FREEZE, THAW, PING, CANCEL, PACK, UNPACK = range(11)
OK, FILE_ERROR, BAD_REQUEST = range(3)

RAN, TIMED_OUT, FLOODED, MEMORY = range(4)
"""How a command ended, first field of the reply to EXEC."""

FOUND, ABSENT, ODD, HUGE = range(4)
"""What is at the answer path, first field of the reply to ANSWER."""


class WireError(ValueError):
    """A frame that does not follow the format."""


def encode(request: int, code: int, fields: Iterable[bytes] = ()) -> bytes:
    """One frame."""
    parts = [request.to_bytes(4, "big"), bytes((code,))]
    for value in fields:
        parts += (len(value).to_bytes(4, "big"), value)
    body = b"".join(parts)
    return len(body).to_bytes(HEADER, "big") + body


def decode(body: bytes | bytearray | memoryview) -> tuple[int, int, list[bytes]]:
    """Request id, code and fields of a frame's body (what follows its length).

    Raises:
        WireError: it is truncated, or has too many fields.
    """
    view = memoryview(body)
    end = len(view)
    if end < 5:
        raise WireError(f"frame of {end} bytes")
    fields: list[bytes] = []
    at = 5
    while at < end:
        if end - at < 4 or len(fields) >= MAX_FIELDS:
            raise WireError("field header cut short or too many fields")
        size = int.from_bytes(view[at : at + 4], "big")
        at += 4
        if size > end - at:
            raise WireError(f"field of {size} bytes in a frame with {end - at} left")
        fields.append(bytes(view[at : at + size]))
        at += size
    return int.from_bytes(view[:4], "big"), view[4], fields


def integer(field: bytes, low: int = 0, high: int = 1 << 62) -> int:
    """A decimal field within bounds.

    Raises:
        WireError: it is no such number.
    """
    if not 0 < len(field) <= 20 or not field.lstrip(b"-").isdigit():
        raise WireError(f"not a number: {field[:20]!r}")
    value = int(field)
    if not low <= value <= high:
        raise WireError(f"{value} is outside {low}..{high}")
    return value


def number(value: int) -> bytes:
    """An integer as a field."""
    return b"%d" % value


def take(fields: Sequence[bytes], count: int) -> Sequence[bytes]:
    """`fields` if there are exactly `count`.

    Raises:
        WireError: there are not.
    """
    if len(fields) != count:
        raise WireError(f"{len(fields)} fields, expected {count}")
    return fields
