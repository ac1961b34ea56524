"""Reading what one process has written, while it writes and after its death."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sandbox_rl.journal.columns import Columns, unpack

__all__ = ["read_chain", "whole_lines", "writers"]


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


def read_chain(directory: Path, writer: str, at: int) -> list[dict[str, Any]]:
    """The events of one episode from its start to the event at an offset, each with its numbers.

    `started` gets `prompt_ids`; a `turn` gets `token_ids`, `logprobs` (None where the engine gave none) and
    `observation_ids`.

    Raises:
        ColumnError: the numbers are not what was written.
        ValueError: there is no event at that place.
    """
    events: list[dict[str, Any]] = []
    place: int | None = at
    path = directory / f"{writer}.jsonl"
    with path.open("rb") as lines, path.with_suffix(".tokens").open("rb") as tokens:
        while place is not None:
            lines.seek(place)
            event = json.loads(lines.readline())
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError(f"{path}: no event at byte {place}")
            before = event.get("prev")
            if before is not None and not 0 <= before < place:
                raise ValueError(f"{path}: the event at byte {place} follows one at {before}")
            events.append(event | _numbers(event, tokens))
            place = before
    return events[::-1]


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
