"""Loading: every row is validated before the first episode, and found again when it is needed.

A `TaskSet` holds row numbers, not tasks; a task is built from its row each time it is asked for.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np

from sandbox_rl.errors import DataError
from sandbox_rl.tasks.config import DataSettings, TaskSource
from sandbox_rl.tasks.rows import BadRows, LoadReport, RowProblem
from sandbox_rl.tasks.sources import OpenSource
from sandbox_rl.types import Task

logger = logging.getLogger(__name__)

Split = Literal["train", "held_out"]


def hash64(text: str, salt: str = "") -> int:
    """A 64-bit hash of text, equal on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()[:64])
    return int.from_bytes(digest.digest(), "big")


def is_held_out(key: str, fraction: float) -> bool:
    """Whether the row or group of that key is kept from training; depends on nothing else."""
    return hash64(key, "held-out") < fraction * 2**64


class TaskSet(Sequence[Task]):
    """Tasks in order. Immutable; `report` says what was loaded and what was left out."""

    def __init__(self, sources: Sequence[OpenSource], picks: array[int], report: LoadReport) -> None:
        self._sources = tuple(sources)
        self._picks = picks  # source number << 48 | row number
        self.report = report

    def __len__(self) -> int:
        return len(self._picks)

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> TaskSet: ...

    def __getitem__(self, index: int | slice) -> Task | TaskSet:
        if isinstance(index, slice):
            return TaskSet(self._sources, self._picks[index], self.report)
        pick = self._picks[index]
        return self._sources[pick >> 48].task(pick & (1 << 48) - 1)

    def of_each_source(self, most: int) -> Mapping[int, Sequence[Task]]:
        """The first tasks of every source that has any, by its place in the settings."""
        found: dict[int, list[Task]] = {}
        for index, pick in enumerate(self._picks):
            tasks = found.setdefault(pick >> 48, [])
            if len(tasks) < most:
                tasks.append(self[index])
        return found

    def source_name(self, number: int) -> str:
        """What reports call the source in this place of the settings."""
        return self._sources[number].name


def load_tasks(settings: DataSettings, *, split: Split, base_dir: Path) -> TaskSet:
    """Validate all rows of all sources and give the tasks of one side of the split.

    Args:
        base_dir: what relative paths are relative to.

    Raises:
        DataError: a source cannot be read, holds bad rows (unless `on_bad_row` is "skip"), or the split
            comes out empty.
    """
    sources = [source.open(settings, base_dir, number) for number, source in enumerate(settings.sources)]
    bad = BadRows()
    ids: set[int] = set()  # hashes: two of 10^6 ids collide once in 10^7 loads
    chosen: list[array[int]] = []
    for source, given in zip(sources, settings.sources, strict=True):
        chosen.append(_rows_of(source, split, settings.held_out_of(given), settings, bad, ids))
        source.restrict(chosen[-1])
    dropped, kept = bad.by_field.total(), sum(map(len, chosen))
    report = LoadReport(len(ids) + dropped, kept, dropped, tuple(bad.listed), dict(bad.by_field))
    _refuse_or_warn(report, settings)
    picks = _mix(chosen, [source.weight for source in settings.sources], stop=settings.exhausted == "stop")
    limit = settings.limit
    if split == "held_out" and settings.limit_held_out is not None:
        limit = settings.limit_held_out
    if limit is not None:
        picks = picks[:limit]
    if not picks and (split == "train" or any(map(settings.held_out_of, settings.sources))):
        named = ", ".join(source.label for source in settings.sources)[:200]
        raise DataError(
            f"data: the {split} split of {named} is empty ({report.summary()}); give more rows or "
            f"another 'held_out' (now {settings.held_out:g})"
        )
    return TaskSet(sources, picks, report)


def load_source(source: TaskSource, *, limit: int | None, base_dir: Path, seed: int) -> Sequence[Task]:
    """All tasks of a source, or `limit` of them by a hash of their ids, the same on every machine.

    Raises:
        DataError: it cannot be read, is not installed, or holds bad rows.
    """
    # Nothing is held out: what a suite names is all for evaluation.
    whole = source.model_copy(update={"held_out": None})
    settings = DataSettings(
        sources=(whole,), held_out=0.0, limit=limit, seed=seed, shuffle=not source.in_order
    )
    return load_tasks(settings, split="train", base_dir=base_dir)


def _rows_of(
    source: OpenSource, split: Split, fraction: float, settings: DataSettings, bad: BadRows, ids: set[int]
) -> array[int]:
    """The rows of a source that belong to the split, in order; `bad` and `ids` grow by what it finds."""
    rows, keys = array("Q"), array("Q")
    for index, result in enumerate(source.scan()):
        if isinstance(result, RowProblem):
            bad.add(source, index, result)
            continue
        task_id, split_key = result
        key = hash64(task_id)
        if key in ids:
            bad.add(source, index, RowProblem("id", f"{task_id!r:.80} was seen before; ids must be unique"))
            continue
        ids.add(key)
        if is_held_out(split_key, fraction) == (split == "held_out"):
            rows.append(index)
            keys.append(hash64(task_id, f"order-{settings.seed}"))
    if not settings.shuffle or not rows:
        return rows
    order = np.argsort(np.frombuffer(keys, dtype=np.uint64), kind="stable")
    return array("Q", np.frombuffer(rows, dtype=np.uint64)[order].tobytes())


def _refuse_or_warn(report: LoadReport, settings: DataSettings) -> None:
    if not report.dropped_rows:
        return
    first = "; ".join(str(bad) for bad in report.dropped[:5])
    more = f"; and {report.dropped_rows - 5} more" if report.dropped_rows > 5 else ""
    message = f"data: {report.dropped_rows} of {report.rows} rows are bad: {first}{more}"
    if settings.on_bad_row == "error":
        raise DataError(f"{message}; fix them, or leave them out with data.on_bad_row=skip")
    logger.warning("%s; left out", message)


def _mix(chosen: Sequence[array[int]], weights: Sequence[float], *, stop: bool) -> array[int]:
    """Interleave the sources so that every prefix holds them by weight, as nearly as whole rows can.

    The n-th row of a source is due at time (n + ½) / weight; rows come in the order of their times.
    """
    due = [(0.5 / weights[number], number, 0) for number, rows in enumerate(chosen) if rows]
    heapq.heapify(due)
    picks = array("Q")
    while due:
        _, number, at = heapq.heappop(due)
        picks.append(number << 48 | chosen[number][at])
        if at + 1 < len(chosen[number]):
            heapq.heappush(due, ((at + 1.5) / weights[number], number, at + 1))
        elif stop:
            break
    return picks
