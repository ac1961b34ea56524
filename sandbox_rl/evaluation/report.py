"""The results of an evaluation as a person reads them on the screen."""

from __future__ import annotations

from sandbox_rl.display import Display
from sandbox_rl.evaluation.page import columns_of, rows_of
from sandbox_rl.evaluation.results import Results

__all__ = ["no_calls_hint", "show_results"]


def show_results(results: Results, display: Display) -> None:
    """What `eval` found: a column for each mode, and their difference where both were run."""
    columns = columns_of([results])
    rows = rows_of([found for _, found in columns])
    if results.comparison is not None:
        rows.append(["sandbox minus plain", str(results.comparison), ""])
    display.table(f"{results.name}, {results.tasks} tasks", ["", *(mode for mode, _ in columns)], rows)


def no_calls_hint(results: Results, *, endpoint: bool) -> str:
    """What to say where not one tool call was read in all sandbox episodes; "" where some were."""
    sandbox = results.modes.get("sandbox")
    if sandbox is None or not sandbox.episodes or sandbox.means.get("calls", 1.0) > 0:
        return ""
    fix = (
        "start vLLM with --enable-auto-tool-choice and the --tool-call-parser of this model, SGLang with "
        "--tool-call-parser, llama.cpp with --jinja"
        if endpoint
        else "look at the journal; is chat.call_format the one that the model writes?"
    )
    return f"warning: no tool call could be read in {sandbox.episodes} episodes, expected some: {fix}"
