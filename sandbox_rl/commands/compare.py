"""`sandbox-rl compare`: several evaluations on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="What `eval` wrote.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Also write the page to this file.")
    ] = None,
) -> None:
    """Put evaluations side by side; paired with the first where their tasks are the same."""
    from sandbox_rl.evaluation.compare import compare as run

    typer.echo(run(runs, output=output), nl=False)
