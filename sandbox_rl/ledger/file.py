"""The file of a ledger: a line per finished update, and what of it belongs to a checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import orjson

from sandbox_rl.errors import DataError, ModelError
from sandbox_rl.journal.reader import whole_lines
from sandbox_rl.ledger.records import Update, as_line, from_line
from sandbox_rl.outputs import check_format

FORMAT = 1
"""Number in the first line, `{"ledger": 1}`; a newer one is refused."""
COMMIT_FILE = "ledger.json"
"""Name of the file in a checkpoint that says how much of the ledger belongs to it."""
_HEAD = b'{"ledger":%d}\n' % FORMAT
_PIECE = 1 << 20


class Ledger:
    """The ledger of a run that is going on; on the main process only.

    Args:
        path: of the file. What a kill has left of a last line is cut off; a new file gets its first line with
            the first update.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes, self._digest = _whole_lines(path)

    def write(self, update: Update) -> None:
        """Add the line of an update that has finished, and bring it to the disk.

        Raises:
            OSError: the file system refuses.
        """
        line = as_line(update)
        content = line if self._bytes else _HEAD + line
        with self._path.open("r+b" if self._bytes else "wb") as file:
            file.truncate(self._bytes)  # what a write that failed has left
            file.seek(self._bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(content)
        self._digest.update(content)

    def commit(self, checkpoint: Path) -> None:
        """Write into a checkpoint's directory, before its manifest, how much of the ledger belongs to it."""
        content = {"bytes": self._bytes, "sha256": self._digest.hexdigest()}
        (checkpoint / COMMIT_FILE).write_bytes(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))

    @staticmethod
    def committed(path: Path, checkpoint: Path | None) -> int:
        """Bytes of the ledger that belong to a checkpoint; without one, none. Changes nothing.

        Raises:
            ModelError: the checkpoint does not say.
            DataError: the ledger is not what the checkpoint was saved with.
        """
        if checkpoint is None:
            return 0
        try:
            said = orjson.loads((checkpoint / COMMIT_FILE).read_bytes())
            size, digest = int(said["bytes"]), str(said["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{checkpoint / COMMIT_FILE} does not say which part of the ledger belongs to the checkpoint "
                f"({type(error).__name__}); remove that checkpoint to go on from the one before"
            ) from error
        if size and (not path.exists() or _digest_of(path, size) != digest):
            raise DataError(
                f"{path}: the first {size} bytes are not those that {checkpoint} was saved with; restore the "
                "file, or remove that checkpoint to go on from the one before"
            )
        return size


def _whole_lines(path: Path) -> tuple[int, hashlib._Hash]:
    """How many bytes of whole lines there are, and their digest."""
    digest, size = hashlib.sha256(), 0
    for at, line in whole_lines(path) if path.exists() else ():
        digest.update(line)
        size = at + len(line)
    return size, digest


def _digest_of(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size and (piece := file.read(min(size, _PIECE))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


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
                    if type(content["ledger"]) is not int:
                        raise TypeError(f"format {content['ledger']!r}")
                    check_format(path, content["ledger"], FORMAT)
                    continue
                update = from_line(content)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: no line of a ledger ({type(error).__name__}: {error}); restore "
                    "the file as the run wrote it"
                ) from error
            yield update
