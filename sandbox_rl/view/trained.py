"""What updates made of an episode's tokens, found by a small index of the run's `trained/` directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sandbox_rl.errors import DataError
from sandbox_rl.journal import Index
from sandbox_rl.journal.reader import whole_lines, writers
from sandbox_rl.journal.trained import DIRECTORY, TrainedRow, read_rows
from sandbox_rl.view.lines import json_line
from sandbox_rl.view.opened import OpenRun


@dataclass(frozen=True, slots=True)
class TrainedColumns:
    """Of each sampled token of an episode, (N,); NaN where nothing is known.

    Args:
        log_probs: the trainer's, when its loss was computed.
        shares: of the sum of all tokens' absolute gradients in the update.
    """

    log_probs: NDArray[np.float32]
    shares: NDArray[np.float32]


def trained_columns(run: OpenRun, row: Mapping[str, Any]) -> TrainedColumns | None:
    """What is recorded of an episode's tokens; None where nothing is.

    A generation can be split among several updates, whose samples the last one's line of the ledger names,
    and can be trained on several times: then the last time counts.

    Args:
        row: of the episode, with `trained` of the ledger and `sampled`.

    Raises:
        DataError: the values are not those that were written.
    """
    last = row.get("trained")
    if last is None or not (run.path / DIRECTORY).is_dir():
        return None
    read_updates(run.index, run)
    (before,) = run.select("SELECT max(trained) AS trained FROM samples WHERE trained < ?", [last])
    for number in range(last, before["trained"] or 0, -1):
        found = run.select("SELECT writer, at, gradient FROM updates WHERE number = ?", [number])
        start = max((each["writer"].split("-")[0] for each in found), default="")
        found = [each for each in found if each["writer"].startswith(start)]  # done again after a resume
        parts = [part for each in found for part in _rows_of(run, each, row["id"])]
        if parts:
            total = sum(each["gradient"] or float("nan") for each in found)
            return _joined(parts, row["sampled"], total)
    return None


def read_updates(index: Index, run: OpenRun) -> None:
    """Take in where the lines lie that have been written since."""
    directory = run.path / DIRECTORY
    known = {
        row["writer"]: int(row["read"]) for row in index.select("SELECT writer, read FROM trained_files")
    }
    until = time.monotonic() + 2
    for writer in writers(directory):
        at, rows = known.get(writer, 0), []
        for place, line in whole_lines(directory / f"{writer}.jsonl", at):
            value = json_line(line)
            if type(value.get("update")) is int:
                rows.append((value["update"], writer, place, value.get("gradient")))
            at = place + len(line)
            if time.monotonic() > until:
                break
        index.write("REPLACE INTO updates VALUES (?, ?, ?, ?)", rows)
        index.write("REPLACE INTO trained_files VALUES (?, ?)", [(writer, at)])


def _rows_of(run: OpenRun, line: Mapping[str, Any], episode: str) -> list[TrainedRow]:
    directory, writer = run.path / DIRECTORY, line["writer"]
    try:
        with (directory / f"{writer}.jsonl").open("rb") as file:
            file.seek(line["at"])
            value = orjson.loads(file.readline())
        if all(row[0] != episode for row in value["rows"]):
            return []
        return [row for row in read_rows(directory, writer, value) if row.episode == episode]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run.path}: what the trainer made of episode {episode!r} cannot be read: {error}"
        ) from error


def _joined(parts: list[TrainedRow], sampled: int, total: float) -> TrainedColumns:
    log_probs, shares = (np.full(sampled, np.nan, np.float32) for _ in range(2))
    for part in parts:
        place = slice(part.first, part.first + len(part.log_probs))
        log_probs[place] = part.log_probs[: len(log_probs[place])]
        found = np.abs(part.gradients)[: len(shares[place])] / total if total else 0.0
        shares[place] = np.nan_to_num(shares[place]) + found  # a token can be in two parts, once with 0
    return TrainedColumns(log_probs, shares)
