"""Journals with other content than a run has written."""

from __future__ import annotations

from pathlib import Path

from sandbox_rl.journal.columns import with_checksum

__all__ = ["edit_lines"]


def edit_lines(path: Path, old: bytes, new: bytes, count: int = -1) -> None:
    """Other text, of the same length, as if it had been written so: with checksums that fit.

    Args:
        count: lines that are changed at most; -1 for all that have the text.
    """
    assert len(old) == len(new), "each line names the place of another"
    lines = path.read_bytes().splitlines()
    for place, line in enumerate(lines):
        if old in line and count:
            value = line.rpartition(b',"crc":')[0] + b"}"
            lines[place] = with_checksum(value.replace(old, new)).rstrip(b"\n")
            count -= 1
    path.write_bytes(b"".join(line + b"\n" for line in lines))
