"""JSON lines that somebody else is still writing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import orjson


class GrowingLines:
    """The lines of a file, read on from where the last look ended.

    A line without its newline yet is left for later, one that is no JSON object is left out. A file that has
    been replaced by another, as a resumed run does with its metrics, is read anew.
    Every line of ours says a `step`, a whole number; others are left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._read = 0
        self.values: list[dict[str, Any]] = []

    @property
    def version(self) -> str:
        """Another one for other values."""
        return f"{self._file}-{self._read}"

    def refresh(self) -> None:
        """Take in what is new."""
        try:
            with self._path.open("rb") as file:
                self._take(file)
        except OSError:
            self._file, self._read, self.values = None, 0, []

    def _take(self, file: BinaryIO) -> None:
        about = os.fstat(file.fileno())
        identity = about.st_dev, about.st_ino
        if identity != self._file or about.st_size < self._read:
            self._file, self._read, self.values = identity, 0, []
        file.seek(self._read)
        for line in file:
            if not line.endswith(b"\n"):
                return
            self._read += len(line)
            value = json_line(line)
            if type(value.get("step")) is int:
                self.values.append(value)


def json_line(line: bytes) -> dict[str, Any]:
    """The object in a line, with None for numbers that are none; empty where it is no object."""
    try:
        value = orjson.loads(line)
    except ValueError:
        try:
            value = json.loads(line, parse_constant=lambda _: None)  # NaN, as Python writes it
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def json_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        return json_line(path.read_bytes())
    except OSError:
        return {}
