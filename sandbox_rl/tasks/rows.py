"""Rows of data with random access, whatever they are stored in, and what is wrong with some of them.

A store keeps what is needed to find a row again, not the rows, so that a million rows cost little.
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sandbox_rl.errors import DataError
from sandbox_rl.tasks.config import HubSource

if TYPE_CHECKING:
    from sandbox_rl.tasks.sources import OpenSource

Row = Mapping[str, Any]

_BATCH = 1024

_decode = json.JSONDecoder().decode  # json.loads looks at its arguments a million times


class Rows(Protocol):
    """Rows by position, from 0; the base of those here."""

    name: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """One row. Raises `RowProblem` when it cannot be read."""
        ...

    def __iter__(self) -> Iterator[Row | RowProblem]:
        """All rows in order; what cannot be read comes as the problem itself."""
        return self._each(range(len(self)))

    def place(self, index: int) -> str:
        """Where a person finds the row: its number, from 0 and without a header."""
        return f"row {index}"

    def _each(self, indices: Iterable[int]) -> Iterator[Row | RowProblem]:
        for index in indices:
            try:
                yield self.row(index)
            except RowProblem as problem:
                yield problem


class JsonlRows(Rows):
    """A JSON-lines file, mapped into memory; blank lines do not count as rows."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._starts = array("Q")
        self._lines = array("Q")
        self._data: mmap.mmap | bytes
        with path.open("rb") as file:
            size = path.stat().st_size
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        at = 3 if self._data[:3] == b"\xef\xbb\xbf" else 0
        number = 0
        while at < len(self._data):
            end = self._data.find(b"\n", at)
            end = len(self._data) if end < 0 else end
            number += 1
            if not self._data[at:end].isspace() and end > at:
                self._starts.append(at)
                self._lines.append(number)
            at = end + 1

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        start = self._starts[index]
        end = self._data.find(b"\n", start)
        line = self._data[start : len(self._data) if end < 0 else end]
        try:
            value = _decode(line.decode())
        except UnicodeDecodeError as error:
            raise RowProblem("row", f"is not UTF-8 ({error.reason} at byte {error.start})") from error
        except (ValueError, RecursionError) as error:
            raise RowProblem("row", f"is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise RowProblem("row", f"is {shown(value)}; expected a JSON object")
        return value

    def place(self, index: int) -> str:
        return f"line {self._lines[index]}"


class ArrowRows(Rows):
    """A pyarrow table (CSV and Parquet files)."""

    def __init__(self, table: Any, name: str) -> None:
        self.name = name
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> Row:
        try:
            row: Row = self._table.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            raise RowProblem("row", f"is not UTF-8 ({error.reason} at byte {error.start})") from error
        return row

    def __iter__(self) -> Iterator[Row | RowProblem]:
        for start in range(0, len(self), _BATCH):
            try:
                yield from self._table.slice(start, _BATCH).to_pylist()
            except UnicodeDecodeError:
                yield from self._each(range(start, min(start + _BATCH, len(self))))


class HubRows(Rows):
    """A `datasets.Dataset`, which is memory-mapped."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.name = name
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> Row:
        row: Row = self._dataset[index]
        return row

    def __iter__(self) -> Iterator[Row | RowProblem]:
        for columns in self._dataset.iter(batch_size=_BATCH):
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))


def open_table(path: Path, name: str) -> Rows:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file.

    Raises:
        DataError: it is missing, of another kind, or unreadable as a whole.
    """
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist; paths are relative to the recipe")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return JsonlRows(path, name)
    if suffix not in (".json", ".csv", ".tsv", ".parquet"):
        raise DataError(
            f"data file {str(path)!r} ends in {suffix!r}; expected .jsonl, .json, .csv or .parquet"
        )
    # A second of import, and only some recipes need it.
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

            return ArrowRows(pq.read_table(path), name)
        if suffix == ".json":
            return ArrowRows(pa.Table.from_pylist(json.loads(path.read_bytes())), name)
        return ArrowRows(_read_csv(path, "\t" if suffix == ".tsv" else ","), name)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data file {str(path)!r} cannot be read as {suffix[1:]}: {reason}; fix or convert the file"
        ) from error


def _read_csv(path: Path, delimiter: str) -> Any:
    from pyarrow import csv, string

    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    # Everything is read as text: "007" and "1e3" are answers, not numbers.
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, string()), strings_can_be_null=False)
    return csv.read_csv(path, parse_options=parse, convert_options=convert)


def open_hub(source: HubSource) -> Rows:
    """Download the data set or take it from the cache.

    Raises:
        DataError: it is neither available nor cached, or has no such configuration or split.
    """
    # A second of import that only Hub sources pay for.
    import datasets

    try:
        dataset = datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, RuntimeError) as error:  # every "not found" and "offline" of datasets
        reason = " ".join(str(error).split())[:300]
        config = f", config {source.config!r}" if source.config else ""
        raise DataError(
            f"data: Hub data set {source.dataset!r}{config}, split {source.split!r} cannot be loaded "
            f"({type(error).__name__}: {reason}); check its names, or on a machine with network run "
            f"`hf download --repo-type dataset {source.dataset} --local-dir DIR` and use a source of "
            "type: table with path: DIR/….parquet"
        ) from error
    return HubRows(dataset, source.name or source.dataset)


MAX_LISTED = 50
"""Bad rows that are kept with their details; the rest are counted."""


class RowProblem(Exception):
    """One row cannot become a task: which field, what its value is, what was expected."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field = field_name
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out. `row` counts from 0; `place` says where to look, e.g. "line 12"."""

    source: str
    row: int
    place: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} {self.place}, {self.field}: {self.reason}"


class BadRows:
    """Rows that were left out: counted by field, the first ones with their details."""

    def __init__(self) -> None:
        self.listed: list[BadRow] = []
        self.by_field: Counter[str] = Counter()

    def add(self, rows: Rows | OpenSource, index: int, problem: RowProblem) -> None:
        """Leave this row out."""
        self.by_field[problem.field] += 1
        if len(self.listed) < MAX_LISTED:
            bad = BadRow(rows.name, index, rows.place(index), problem.field, problem.reason)
            self.listed.append(bad)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Counts of a load. `by_field` counts dropped rows by the field at fault; `dropped` lists the first."""

    rows: int
    kept: int
    dropped_rows: int
    dropped: tuple[BadRow, ...]
    by_field: Mapping[str, int]

    def summary(self) -> str:
        """One line for a person."""
        text = f"{self.kept} of {self.rows} rows"
        if self.dropped_rows:
            text += f", {self.dropped_rows} dropped ("
            text += ", ".join(f"{name} {count}" for name, count in sorted(self.by_field.items())) + ")"
        return text


def shown(value: object, limit: int = 60) -> str:
    """A short, one-line, printable picture of a value."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
