"""Several evaluations on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.page import page
from sandbox_rl.evaluation.results import Results
from sandbox_rl.outputs import check_new, write_new

__all__ = ["compare", "load_results"]


def compare(runs: Sequence[Path], *, output: Path | None = None) -> str:
    """The Markdown page of the runs, the first being what the others are measured against.

    Args:
        output: file to write the page to as well; must not exist.

    Raises:
        ConfigError: fewer than two runs, a run has no results, or the file cannot be written.
    """
    if len(runs) < 2:
        raise ConfigError(f"compare: {len(runs)} run given, expected at least two")
    if output is not None:
        check_new(output, "--output")
    text = page([load_results(run) for run in runs])
    if output is not None:
        try:
            write_new(output, text, "--output")
        except OSError as error:
            raise ConfigError(f"--output: {output} cannot be written ({error}); name another file") from error
    return text


def load_results(run: Path) -> Results:
    """The results in a directory that `eval` wrote, or in its `results.json`.

    Raises:
        ConfigError: there are none.
    """
    path = run / "results.json" if run.is_dir() else run
    if (path.parent / "recipe.yaml").is_file() and not (path.parent / "evaluation.json").is_file():
        raise ConfigError(
            f"{run}: is a training run, expected what `sandbox-rl eval` wrote; evaluate its export "
            f"(sandbox-rl eval RECIPE --model {path.parent / 'export'}) and compare that"
        )
    try:
        return Results.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}), expected what `sandbox-rl eval` wrote; name its "
            "output directory, or finish the run with --resume"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path}: is not a result of `sandbox-rl eval` ({type(error).__name__}: {first}); evaluate "
            "again, or write it anew by --resume"
        ) from error
