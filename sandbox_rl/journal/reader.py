"""Reading what one process has written, while it writes and after its death."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sandbox_rl.journal.columns import Columns, is_as_written, unpack

TURN = (b'{"event":"turn"', b'{"event": "turn"')
"""How a line of a turn begins."""
_HEAD = re.compile(
    rb'\{"event":\s*"\w+",\s*"episode_id":\s*"[^"\\]*(?:\\.[^"\\]*)*"(?:,\s*"prev":\s*(-?\d+))?'
)
"""How every event of an episode begins, and the offset of the one before it, which the first lacks."""

_LENGTHS = re.compile(rb'"lengths":\s*\[([\d,\s]*)\]')
WITHIN = 300
"""Bytes at the end of a line within which its columns stand."""


def writers(directory: Path) -> list[str]:
    """The names, without suffix, of the files that the processes have written, in order."""
    return sorted(path.stem for path in directory.glob("*.jsonl"))


def whole_lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each whole line from an offset on; what has no newline yet is left out."""
    with path.open("rb") as file:
        file.seek(start)
        at = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield at, line
            at += len(line)


def places_of(directory: Path, writer: str, at: int) -> list[int]:
    """Offsets of the events of one episode from its start to the event at an offset.

    Raises:
        ValueError: there is no event at one of these places.
    """
    path = directory / f"{writer}.jsonl"
    places = [at]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
        while True:  # some hundred thousand times for a long episode
            found = _HEAD.match(lines, at)
            if found is None:
                raise ValueError(f"{path}: no event at byte {at}")
            if (before := found[1]) is None:
                return places[::-1]
            if not 0 <= int(before) < at:
                raise ValueError(f"{path}: the event at byte {at} follows one at {int(before)}")
            at = int(before)
            places.append(at)


def lengths_of(directory: Path, writer: str, places: Sequence[int]) -> list[tuple[int, ...]]:
    """How many ids each column of the events at these places holds, without reading anything else of them.

    Raises:
        ValueError: there is no event at one of these places.
    """
    path = directory / f"{writer}.jsonl"
    found = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
        for place in places:
            # The last of that name in the line: what a policy wrote stands before it.
            end = lines.find(b"\n", place)
            at = lines.rfind(b'"columns":', max(place, end - WITHIN), end)
            said = _LENGTHS.search(lines, at, end) if at >= 0 else None
            if said is None:
                raise ValueError(f"{path}: no event at byte {place}")
            found.append(tuple(map(int, said.group(1).split(b","))) if said.group(1) else ())
    return found


def read_events(directory: Path, writer: str, places: Sequence[int]) -> list[dict[str, Any]]:
    """The events at these places, each with its numbers.

    `started` gets `prompt_ids`; a `turn` gets `token_ids`, `logprobs` (None where the engine gave none) and
    `observation_ids`.

    Raises:
        ColumnError: the numbers are not what was written.
        ValueError: there is no event at one of the places, or a line is not the one that was written.
    """
    events: list[dict[str, Any]] = []
    path = directory / f"{writer}.jsonl"
    with path.open("rb") as lines, path.with_suffix(".tokens").open("rb") as tokens:
        for place in places:
            lines.seek(place)
            line = lines.readline()
            if is_as_written(line) is False:
                raise ValueError(f"{path}: the line at byte {place} is not the one that was written")
            event = json.loads(line)
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError(f"{path}: no event at byte {place}")
            events.append(event | _numbers(event, tokens))
    return events


def _numbers(event: Mapping[str, Any], tokens: BinaryIO) -> dict[str, Any]:
    where = event["columns"]
    columns = Columns(where["at"], tuple(where["lengths"]), where["logprobs"] or 0, where["crc"])
    content = os.pread(tokens.fileno(), columns.size, columns.at)
    ids, logprobs = unpack(content, columns)
    if event["event"] == "started":
        return {"prompt_ids": list(ids[0])}
    if event["event"] == "turn":
        found = None if where["logprobs"] is None else list(logprobs)
        return {"token_ids": list(ids[0]), "logprobs": found, "observation_ids": list(ids[1])}
    return {}
