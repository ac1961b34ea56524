"""What loading found: counts, and every bad row with its place, field and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BadRow", "BadRows", "LoadReport", "RowProblem", "shown"]

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


class Placed(Protocol):
    """Rows that have a name and places where a person finds them."""

    name: str

    def place(self, index: int) -> str: ...


class BadRows:
    """Rows that were left out: counted by field, the first ones with their details."""

    def __init__(self) -> None:
        self.listed: list[BadRow] = []
        self.by_field: Counter[str] = Counter()

    def add(self, rows: Placed, index: int, problem: RowProblem) -> None:
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
