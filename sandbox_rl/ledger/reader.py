"""Reading a ledger, one update at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from sandbox_rl.errors import DataError
from sandbox_rl.ledger.records import Update, from_line

__all__ = ["FORMAT", "read_ledger"]

FORMAT = 1
"""Number in the first line, `{"ledger": 1}`; a newer one is refused."""


def read_ledger(path: Path) -> Iterator[Update]:
    """The updates of a ledger in their order, with flat memory. A last line without its end is left out: the
    process died, or is just writing it, and its update does not count yet.

    Raises:
        DataError: there is no such file, it is none of ours or of a newer version, or a line is damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}, expected the ledger that a training run writes; "
            "name a run's directory"
        ) from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                content = orjson.loads(line)
                if number == 1:
                    _check_format(path, content["ledger"])
                    continue
                update = from_line(content)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: no line of a ledger ({type(error).__name__}: {error}); restore "
                    "the file as the run wrote it"
                ) from error
            yield update


def _check_format(path: Path, found: object) -> None:
    if type(found) is not int:
        raise TypeError(f"format {found!r}")
    if found > FORMAT:
        raise DataError(
            f"{path}: written in format {found}, this version reads up to {FORMAT}; use the version of "
            "sandbox-rl that the run was trained with, or a newer one"
        )
