"""`sandbox-rl bundle`: a run as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, e.g. runs/quickstart.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The new file; RUN.bundle.zip by default."),
    ] = None,
) -> None:
    """Pack a run's recipe, versions, ledger, episodes, metrics and tasks into one file, without weights.

    `sandbox-rl verify` checks it on any machine. It holds prompts, answers and what the policy wrote.
    """
    from sandbox_rl.replay.bundle import bundle as pack

    typer.echo(str(pack(run, output)))
