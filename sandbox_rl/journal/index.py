"""The index of a journal: one row per episode, for listing, searching and opening.

A SQLite file beside the journal, or wherever a reader wants it. It holds nothing that the journal does not:
it can be deleted at any time and is then made again, as it is by itself where other files lie in the place of
those it was made of. Only readers write it, a run never does. `refresh` reads what has been appended since.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandbox_rl.errors import DataError
from sandbox_rl.journal.columns import is_as_written
from sandbox_rl.journal.reader import TURN, places_of, read_events, whole_lines, writers

FILE = "index.sqlite"
VERSION = 2
ANSWER_CHARS = 1_000
"""Of an answer, and of what the scorer says of it, that can be searched."""
HEAD_BYTES = 400
"""Of a file, by which it is known again."""

_SCHEMA = f"""
PRAGMA user_version = {VERSION};
CREATE TABLE files (writer TEXT PRIMARY KEY, read INTEGER NOT NULL, head INTEGER NOT NULL);
CREATE TABLE episodes (
  id TEXT PRIMARY KEY, writer TEXT NOT NULL, last INTEGER NOT NULL,
  state TEXT NOT NULL, replaced INTEGER NOT NULL DEFAULT 0,
  phase TEXT, step INTEGER, mode TEXT, part TEXT, task_id TEXT, domain TEXT, seed INTEGER, siblings TEXT,
  stop TEXT, fault TEXT, reward REAL, masked INTEGER, turns INTEGER,
  prompt INTEGER, sampled INTEGER, observed INTEGER,
  seconds REAL, generation_seconds REAL, execution_seconds REAL,
  answer_status TEXT, answer TEXT, detail TEXT, started REAL, ended REAL
);
CREATE INDEX by_step ON episodes (phase, step);
CREATE INDEX by_task ON episodes (task_id);
CREATE INDEX by_siblings ON episodes (siblings);
"""

_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
_CONTEXT = ("phase", "step", "mode", "part")
_END = (
    *("stop", "fault", "reward", "masked", "turns", "sampled", "observed"),
    *("seconds", "generation_seconds", "execution_seconds"),
)
_EPISODE_ID = re.compile(rb'"episode_id":\s*("(?:[^"\\]|\\.)*")')
_SAMPLE = re.compile(r"(.+)-\d+(-r\d+)?")
"""An id is its group's name, the sample's number, and how often it was sampled before."""


class Index:
    """A context manager. Rows of the table `episodes` are what SQL may be asked about.

    `state` is `live`, `ended` (scored, or lost to a fault) or `abandoned` (cancelled, or failed on
    our side before another try). `replaced` is 1 where the run was resumed from before its update, which
    is done again. `siblings` is the same for all episodes of a group and for none besides.

    Args:
        directory: of the journal.
        memory: keep the index in memory, as where the directory cannot be written to.
        file: keep it in this file.

    Raises:
        DataError: there is no journal in the directory.
    """

    def __init__(self, directory: Path, *, memory: bool = False, file: Path | None = None) -> None:
        if not directory.is_dir():
            raise DataError(f"{directory}: there is no journal, expected the directory that a run writes")
        self.directory = directory
        self._path = ":memory:" if memory else str(file or directory / FILE)

    def __enter__(self) -> Index:
        self._db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        if self._path != ":memory:":
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = OFF")  # it can be made again
        with _transaction(self._db):
            if self._db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                for (name,) in self._db.execute(_TABLES).fetchall():
                    self._db.execute(f"DROP TABLE {name}")
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()

    def refresh(self) -> int:
        """Take in what has been written since the last time; returns how many episodes have ended."""
        self.advance(float("inf"))
        return int(self._db.execute("SELECT count(*) FROM episodes WHERE state = 'ended'").fetchone()[0])

    def advance(self, seconds: float) -> int:
        """Take in what has been written since, for about so long but at least a line of each writer; returns
        how many bytes are left."""
        until, left = time.monotonic() + seconds, 0
        with _transaction(self._db):
            known = {row["writer"]: row for row in self._db.execute("SELECT * FROM files").fetchall()}
            if not all(self._is_same(**row) for row in known.values()):
                for (table,) in self._db.execute(_TABLES).fetchall():  # also what readers have added
                    self._db.execute(f"DELETE FROM {table}")
                known = {}
            for writer in writers(self.directory):
                left += self._refresh(writer, known[writer]["read"] if writer in known else 0, until)
        return left

    def select(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows that a query of the table `episodes` gives."""
        return self._db.execute(sql, values).fetchall()

    def write(self, sql: str, rows: Iterable[Sequence[Any]] = ((),)) -> None:
        """Run a statement for each row of values, all or none: a reader's own tables and indices."""
        with _transaction(self._db):
            self._db.executemany(sql, rows) if "?" in sql else self._db.execute(sql)

    @property
    def connection(self) -> sqlite3.Connection:
        """For those who guard what they ask."""
        return self._db

    def record(self, episode_id: str) -> dict[str, Any]:
        """One episode as `records.rollout_record` gives it; if it is under way, as far as it has come.

        Raises:
            DataError: no such episode, or it is not what was written.
        """
        sql = "SELECT writer, last, phase FROM episodes WHERE id = ?"
        found = self._db.execute(sql, (episode_id,)).fetchone()
        if found is None:
            raise DataError(f"{self.directory}: no episode {episode_id!r}")
        try:
            record = read_record(self.directory, found["writer"], found["last"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.directory}: episode {episode_id!r} cannot be read: {error}") from error
        return record | {"phase": found["phase"]} if "phase" in record else record

    def records(self) -> Iterator[dict[str, Any]]:
        """All episodes that have ended and stand, in the order in which they ended, one at a time."""
        rows = self._db.execute(
            "SELECT id FROM episodes WHERE state = 'ended' AND NOT replaced ORDER BY ended, rowid"
        )
        for row in rows.fetchall():
            yield self.record(row["id"])

    def _is_same(self, writer: str, read: int, head: int) -> bool:
        """Whether a file is the one that was read, and not another run's in its place."""
        path = self.directory / f"{writer}.jsonl"
        return path.exists() and path.stat().st_size >= read and (not read or _head(path) == head)

    def _refresh(self, writer: str, at: int, until: float) -> int:
        path, start = self.directory / f"{writer}.jsonl", at
        live: dict[str, tuple[int, int]] = {}  # last turn and how many, of episodes that have not ended since
        for place, line in whole_lines(path, at):
            if place > start and time.monotonic() > until:
                break
            at = place + len(line)
            if line.startswith(TURN):
                named = _EPISODE_ID.search(line[:1_000])  # a line can be megabytes
                if named is not None:
                    id = json.loads(named.group(1))
                    live[id] = place, live.get(id, (0, 0))[1] + 1
                continue
            if is_as_written(line) is False:
                continue  # nothing of it is believed
            try:
                event = json.loads(line)
                live.pop(event.get("episode_id"), None)
                self._take(writer, place, event)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # not a line of ours
        for id, (place, turns) in live.items():
            sql = "UPDATE episodes SET last = ?, turns = turns + ? WHERE id = ? AND writer = ?"
            self._db.execute(sql, (place, turns, id, writer))
        self._db.execute("REPLACE INTO files VALUES (?, ?, ?)", (writer, at, _head(path) if at else 0))
        return path.stat().st_size - at

    def _take(self, writer: str, at: int, event: Mapping[str, Any]) -> None:
        kind, time = event["event"], event["time"]
        if kind == "started":
            row = {"id": event["episode_id"], "writer": writer, "last": at, "state": "live", "turns": 0}
            row |= {name: event.get(name) for name in (*_CONTEXT, "task_id", "domain", "seed")}
            row |= {"prompt": event["columns"]["lengths"][0], "started": time}
            row = _storable(row | {"siblings": _siblings(event["episode_id"])})
            self._db.execute(f"REPLACE INTO episodes ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)
        elif kind == "ended":
            answer, usage = event["answer"], event.get("usage", {})
            row = {name: event.get(name) for name in _END} | {"last": at, "state": "ended", "ended": time}
            row |= {name: event[name] for name in _CONTEXT if name in event}
            row |= {name: usage[name] for name in ("prompt", "sampled", "observed") if name in usage}
            row |= {"answer_status": answer["status"], "answer": answer["text"][:ANSWER_CHARS]}
            row |= {"detail": event.get("reward_detail", "")[:ANSWER_CHARS]}
            self._update(writer, event["episode_id"], row)
        elif kind == "abandoned":
            self._update(writer, event["episode_id"], {"last": at, "state": "abandoned", "ended": time})
        elif kind == "cancelled":
            self._db.execute("UPDATE episodes SET phase = ? WHERE id = ?", (kind, event["episode_id"]))
        elif kind == "replaced":
            # Of earlier starts: an id may have come again since.
            sql = "UPDATE episodes SET replaced = 1 WHERE id = ? AND writer < ?"
            start = writer[: writer.index("-")]
            self._db.executemany(sql, [(id, start) for id in event["episode_ids"]])

    def _update(self, writer: str, id: str, row: dict[str, Any]) -> None:
        row = _storable(row)
        fields = ", ".join(f"{name} = :{name}" for name in row)
        sql = f"UPDATE episodes SET {fields} WHERE id = :id AND writer = :writer"
        self._db.execute(sql, row | {"id": id, "writer": writer})


def read_journal(directory: Path) -> Iterator[dict[str, Any]]:
    """All episodes of a journal that have ended, whole, in the order in which they did.

    Raises:
        DataError: as `Index`.
    """
    with Index(directory, memory=True) as index:
        index.refresh()
        yield from index.records()


def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Halves of surrogate pairs, which a policy can write and SQLite cannot, become escapes."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row.items()
    }


def _head(path: Path) -> int:
    with path.open("rb") as file:
        return zlib.crc32(file.read(HEAD_BYTES).partition(b"\n")[0])


def _siblings(id: str) -> str:
    found = _SAMPLE.fullmatch(id)
    return id if found is None else found.group(1) + (found.group(2) or "")


def read_record(directory: Path, writer: str, at: int) -> dict[str, Any]:
    """One episode as `records.rollout_record` gives it, up to its event at an offset.

    Raises:
        ValueError: as `reader.places_of` and `reader.read_events`.
    """
    events = read_events(directory, writer, places_of(directory, writer, at))
    start, end = events[0], events[-1]
    turns = [
        {k: v for k, v in e.items() if k not in (*_PLACE, "episode_id")}
        for e in events
        if e["event"] == "turn"
    ]
    if end["event"] == "ended" and turns:
        turns[-1]["observation_ids"] = []  # no action followed
    record = {k: v for k, v in start.items() if k not in _PLACE}
    if end["event"] == "ended":
        record |= {k: v for k, v in end.items() if k not in (*_PLACE, "turns")}
    return record | {"turns": turns}


_PLACE = ("event", "prev", "columns", "index", "time", "crc")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and alone with the file."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        yield
