"""What a journal says about its episodes, by id, in a temporary file of the system: memory stays flat."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.journal.audit import DamagedLine, Note, audited

_SCHEMA = """
CREATE TABLE episodes (
  id TEXT PRIMARY KEY, start INTEGER, phase TEXT, task TEXT, seed INTEGER, reward REAL, masked INTEGER,
  sampled INTEGER, oldest INTEGER, damage TEXT, replaced INTEGER DEFAULT 0, seen INTEGER DEFAULT 0
) WITHOUT ROWID
"""
_SELECT = "SELECT id, phase, task, seed, reward, masked, sampled, oldest, damage, replaced FROM episodes"


@dataclass(frozen=True, slots=True)
class Fact:
    """An episode that has ended; see `journal.audit.EndedEpisode`."""

    id: str
    phase: str
    task: str
    seed: int | None
    reward: float | None
    masked: bool
    sampled: int
    oldest: int | None
    damage: str
    replaced: bool


class Facts:
    """To be closed.

    Args:
        directory: of the journal, which is only read.

    Raises:
        OSError: a file of it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.damaged_line: DamagedLine | None = None
        """The first line that is not as it was written, also of what no longer counts."""
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.row_factory = _fact
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(_SCHEMA)
        self._db.execute("BEGIN")
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Forget everything."""
        self._db.close()

    def _read(self) -> None:
        for found in audited(self._directory):
            if isinstance(found, DamagedLine):
                self.damaged_line = self.damaged_line or found
                continue
            if isinstance(found, Note):
                sql = {
                    "replaced": "UPDATE episodes SET replaced = 1 WHERE id = ? AND start < ?",
                    "cancelled": "UPDATE episodes SET phase = 'cancelled' WHERE id = ? AND start <= ?",
                }[found.kind]
                self._db.executemany(sql, [(id, found.start) for id in found.episodes])
                continue
            event, damage = found.event, found.damage
            before = self.get(found.id)
            if before is not None and not before.replaced:
                damage = damage or "it has ended twice"
            row = (
                *(found.id, found.start, str(event.get("phase")), found.task, found.seed, event["reward"]),
                *(int(bool(event.get("masked"))), found.sampled, found.oldest, damage),
            )
            sql = f"REPLACE INTO episodes VALUES ({', '.join('?' * len(row))}, 0, 0)"
            self._db.execute(sql, row)

    def get(self, id: str) -> Fact | None:
        """The episode of an id, if it has ended."""
        found: Fact | None = self._db.execute(f"{_SELECT} WHERE id = ?", (id,)).fetchone()
        return found

    def saw(self, ids: Iterator[str]) -> None:
        """Remember that the ledger names these episodes."""
        self._db.executemany("UPDATE episodes SET seen = 1 WHERE id = ?", ((id,) for id in ids))

    def unseen(self) -> Iterator[Fact]:
        """Episodes of training that stand and that the ledger does not name."""
        return self._db.execute(f"{_SELECT} WHERE phase = 'train' AND NOT replaced AND NOT seen ORDER BY id")

    def damaged(self) -> Fact | None:
        """The first standing episode, of whatever phase, that is not as it was written."""
        sql = f"{_SELECT} WHERE damage != '' AND NOT replaced ORDER BY id LIMIT 1"
        found: Fact | None = self._db.execute(sql).fetchone()
        return found


def _fact(_: sqlite3.Cursor, row: tuple[Any, ...]) -> Fact:
    id, phase, task, seed, reward, masked, sampled, oldest, damage, replaced = row
    return Fact(id, phase, task, seed, reward, bool(masked), sampled, oldest, damage, bool(replaced))
