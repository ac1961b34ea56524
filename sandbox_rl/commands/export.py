"""`sandbox-rl export`: a run's checkpoint as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, e.g. runs/quickstart.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory to write; must not exist.")],
    checkpoint: Annotated[
        int | None, typer.Option("--step", help="Checkpoint of this step instead of the newest complete one.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Merge LoRA adapters into the model.")
    ] = True,
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="ID", help="Also upload it under this Hub id.")
    ] = None,
) -> None:
    """Write a run's checkpoint as a model directory that transformers and vLLM load."""
    from sandbox_rl.runs.export import export as run

    path = run(run_dir, output, step=checkpoint, merge_lora=merge, push_to_hub=push_to_hub)
    typer.echo(str(path))
