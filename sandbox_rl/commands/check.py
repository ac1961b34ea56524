"""`sandbox-rl check`: whether every sample of a run is accounted for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def check(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, e.g. runs/quickstart.")],
) -> None:
    """Prove from a run's files that each sample was used as scheduled, or name the first that was not.

    Exit code 1 if one was not. Nothing is written.
    """
    from sandbox_rl.runs.check import check_run

    found = check_run(run_dir)
    typer.echo(f"{run_dir}: {found}")
    if found.violation is not None:
        sys.exit(1)
