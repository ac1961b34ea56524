"""The results of an evaluation as a person reads them on the screen."""

from __future__ import annotations

from sandbox_rl.commands.display import Display
from sandbox_rl.evaluation.page import columns_of, difference_text, rows_of
from sandbox_rl.evaluation.results import Results

__all__ = ["show_results"]


def show_results(results: Results, display: Display) -> None:
    """What `eval` found: a column for each mode, and their difference where both were run."""
    columns = columns_of([results])
    rows = rows_of([found for _, found in columns])
    if results.comparison is not None:
        rows.append(["sandbox minus plain", difference_text(results.comparison), ""])
    display.table(f"{results.name}, {results.tasks} tasks", ["", *(mode for mode, _ in columns)], rows)
