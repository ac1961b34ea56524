"""One run's directory, opened for looking at: what is in its files, and an index of its episodes.

Nothing is ever written into the run. The index lies in the user's cache directory, or in memory where that
cannot be written to.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sandbox_rl.errors import DataError
from sandbox_rl.evaluation.plan import FORMAT as EVALUATION_FORMAT
from sandbox_rl.evaluation.results import FORMAT
from sandbox_rl.journal import Index
from sandbox_rl.ledger.file import FORMAT as LEDGER_FORMAT
from sandbox_rl.lock import is_owned
from sandbox_rl.outputs import check_format
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import refuse_newer
from sandbox_rl.view.golds import Golds
from sandbox_rl.view.lines import GrowingLines, json_file, json_line
from sandbox_rl.view.samples import TABLES, read_samples
from sandbox_rl.view.vocabulary import Vocabulary, model_of, vocabulary_of

SORTED = ("state", "step", "reward", "turns", "sampled", "seconds", "started", "stop", "domain")
"""Columns by which a million rows are listed at once."""
SILENT_S = 120
"""Without any sign of life a run that has not said its end is taken for dead."""

_OWN_TABLES = (
    *TABLES,
    "CREATE TABLE IF NOT EXISTS flags (episode TEXT, name TEXT, detail TEXT, PRIMARY KEY (episode, name))",
    "CREATE TABLE IF NOT EXISTS looked (episode TEXT PRIMARY KEY, work INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_flag ON flags (name)",
    "CREATE TABLE IF NOT EXISTS updates "
    "(number INTEGER, writer TEXT, at INTEGER, gradient REAL, PRIMARY KEY (writer, at))",
    "CREATE TABLE IF NOT EXISTS trained_files (writer TEXT PRIMARY KEY, read INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_number ON updates (number)",
)


class OpenRun:
    """A context manager, for one thread.

    Args:
        path: of a training run or of an evaluation.
        cache: directory for the index; None keeps it in memory.

    Raises:
        DataError: the directory is none of these, or of a newer version.
    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = path.resolve()
        self.name = self.path.name
        _check(path)
        self.kind = "evaluation" if (path / "evaluation.json").exists() else "training"
        self.metrics = GrowingLines(path / "metrics.jsonl")
        self.history = GrowingLines(path / "history.jsonl")
        self.alarms = GrowingLines(path / "alarms.jsonl")
        self.model = model_of(path)
        """That it trains or measures, as it names it."""
        self.opened: tuple[tuple[str, int], list[int]] | None = None
        """Where the events of the episode lie that was asked for last."""
        self.lengths: tuple[str, NDArray[np.int64], NDArray[np.int64]] | None = None
        """Whose tokens were asked for last; its tokens, and sampled ones, up to the end of each event."""
        self.behind = 0
        """Bytes of the journal that are not in the index yet."""
        self.golds = Golds(self.path)
        self._cache = cache
        self._sorted = False
        self._vocabulary: Vocabulary | None = None
        self._look_again = 0.0

    def __enter__(self) -> OpenRun:
        self._stack = ExitStack()
        self.index = self._stack.enter_context(self._open_index())
        for statement in _OWN_TABLES:
            self.index.write(statement)
        return self

    def __exit__(self, *exc: object) -> None:
        self.golds.close()
        self._stack.close()

    def _open_index(self) -> Index:
        journal = self.path / "journal"
        if not journal.is_dir():  # a run that has just begun
            journal = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        if self._cache is not None:
            name = hashlib.blake2b(os.fsencode(journal), digest_size=12).hexdigest()
            try:
                self._cache.mkdir(parents=True, exist_ok=True)
                with Index(journal, file=self._cache / f"{name}.sqlite") as index:
                    return index  # it could be opened, and can be again
            except (OSError, sqlite3.Error):
                pass
        return Index(journal, memory=True)

    def refresh(self, seconds: float = 0.3) -> None:
        """Take in what has been written since, for about so long."""
        for lines in (self.metrics, self.history, self.alarms):
            lines.refresh()
        self.behind = self.index.advance(seconds)
        if not self.behind:
            read_samples(self.index, self.path / "ledger.jsonl", seconds)
            if not self._sorted:
                for column in SORTED:
                    self.index.write(f"CREATE INDEX IF NOT EXISTS sorted_{column} ON episodes ({column})")
                self._sorted = True

    def select(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of the index."""
        return [dict(row) for row in self.index.select(sql, values)]

    @property
    def vocabulary(self) -> Vocabulary:
        """What token ids say; of a run without a tokenizer in reach it knows nothing."""
        found = self._vocabulary
        if found is None or (not found.known and time.monotonic() > self._look_again):
            found = self._vocabulary = vocabulary_of(self.path)  # a run saves its own after its start
            self._look_again = time.monotonic() + 5
        return found

    @property
    def finished(self) -> bool:
        """Whether it has said that it is done."""
        if self.kind == "evaluation":
            return (self.path / "results.json").exists()
        return self._said == "finished"

    @property
    def state(self) -> str:
        """`finished`; `stopped`, as it was asked to; `running`; `ended`: its process is gone without a word;
        or `silent`: no sign of life for some minutes, where nobody can tell."""
        if self.finished:
            return "finished"
        owned = is_owned(self.path)
        if owned:
            return "running"
        if self._said == "stopped":
            return "stopped"
        if owned is False and "after" not in self.results():  # an export needs the run for itself no more
            return "ended"
        return "running" if time.time() - self.last_sign < SILENT_S else "silent"

    @property
    def _said(self) -> object:
        """The last event of its history."""
        said = [e.get("event") for e in self.history.values if e.get("event") != "changed"]
        return said[-1] if said else None

    @property
    def last_sign(self) -> float:
        """When it last wrote anything, Unix seconds."""
        files = [self.path / "metrics.jsonl", self.path / "history.jsonl", *self.path.glob("journal/*.jsonl")]
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)

    def results(self) -> dict[str, Any]:
        """What `results.json` holds."""
        return json_file(self.path / "results.json")


@contextmanager
def open_run(path: Path, *, whole: bool = False) -> Iterator[OpenRun]:
    """A run with its index in the user's cache directory.

    Args:
        whole: return only once everything that is written is in the index.

    Raises:
        DataError: as `OpenRun`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with OpenRun(path, Path(base).expanduser() / "sandbox-rl" / "view") as run:
        run.refresh(float("inf") if whole else 0.3)
        yield run


def _check(path: Path) -> None:
    if not path.is_dir():
        raise DataError(f"{path}: there is no such directory, expected one that `train` or `eval` wrote")
    if not any((path / name).exists() for name in ("journal", "metrics.jsonl", "evaluation.json")):
        raise DataError(
            f"{path}: this is no run, expected a directory with a journal/ or metrics.jsonl in it, as "
            "`train` and `eval` write it; name the run itself, such as runs/quickstart"
        )
    refuse_newer(RunDirectory(path))
    if (identity := path / "evaluation.json").exists():
        told = json_file(identity).get("format")
        if not isinstance(told, int):
            raise DataError(
                f"{identity}: it does not say what is measured, expected what `eval` writes as it starts; it "
                "was killed before that, or the file is damaged: run it again"
            )
        check_format(identity, told, EVALUATION_FORMAT)
    found = json_file(path / "results.json")
    for part in (found, *found.values()):
        if isinstance(part, dict):
            check_format(path / "results.json", part.get("format"), FORMAT)
    ledger = path / "ledger.jsonl"
    if ledger.exists():
        with ledger.open("rb") as file:
            check_format(ledger, json_line(file.readline(1_000)).get("ledger"), LEDGER_FORMAT)
