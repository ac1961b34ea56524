"""`sandbox-rl python-env`: a Python for sandboxes that holds nothing of the trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command("python-env")
def python_env(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A new or empty directory.")],
    requirements: Annotated[
        Path, typer.Option(metavar="FILE", help="What is in it, as pip reads it.")
    ] = Path("configs/sandbox/requirements.txt"),
) -> None:
    """Make a Python environment for sandboxes that holds nothing of the trainer's.

    Prints the line for the recipe. One that is there already, of the same requirements, is kept.
    """
    from sandbox_rl.sandboxes.python_env import make_python_env

    make_python_env(directory, requirements)
    typer.echo(f"sandbox.python_env={directory.resolve()}")
