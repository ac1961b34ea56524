"""What the ledger says of each sample, brought into the index, on from where the last look ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from sandbox_rl.journal import Index
from sandbox_rl.journal.reader import whole_lines
from sandbox_rl.ledger.records import from_line

TABLES = (
    "CREATE TABLE IF NOT EXISTS samples "
    "(episode TEXT PRIMARY KEY, end TEXT, advantage REAL, trained INTEGER)",
    "CREATE TABLE IF NOT EXISTS ledger (file TEXT NOT NULL, read INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_end ON samples (end)",
    "CREATE INDEX IF NOT EXISTS by_trained ON samples (trained)",
)


def read_samples(index: Index, path: Path, seconds: float) -> None:
    """Take in what has been written since, for about so long. A ledger that a resumed run put in the place
    of another is read anew.

    Args:
        path: of the ledger; need not be there.
    """
    file, size = "", 0
    if path.exists():
        about = path.stat()
        file, size = f"{about.st_dev}-{about.st_ino}", about.st_size
    known = index.select("SELECT file, read FROM ledger")
    at = int(known[0]["read"]) if known and known[0]["file"] == file and known[0]["read"] <= size else 0
    if not at:
        index.write("DELETE FROM samples")
    if at == size:
        return
    until = time.monotonic() + seconds
    rows: list[tuple[str, str, float | None, int]] = []
    for place, line in whole_lines(path, at):
        if time.monotonic() > until:
            break
        rows += _samples(line)
        at = place + len(line)
    index.write("REPLACE INTO samples VALUES (?, ?, ?, ?)", rows)
    index.write("DELETE FROM ledger")
    index.write("INSERT INTO ledger VALUES (?, ?)", [(file, at)])


def _samples(line: bytes) -> Iterator[tuple[str, str, float | None, int]]:
    """Of one update; nothing of the first line, which names the format, or of a damaged one."""
    try:
        value: Any = orjson.loads(line)
        update = from_line(value)
    except (ValueError, KeyError, TypeError):
        return
    for group in update.groups:
        for sample in group.samples:
            yield sample.episode, sample.end.value, sample.advantage, update.number
