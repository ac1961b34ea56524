"""`sandbox-rl export-episodes`: a run's episodes as files that other tools open."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


class Form(StrEnum):
    """As `sandbox_rl.view.formats.Format`, which takes longer to load than `--help` may."""

    JSONL = "jsonl"
    HARBOR = "harbor"
    INSPECT = "inspect"


@app.command("export-episodes")
def export_episodes(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="What `train` or `eval` wrote.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new file; for harbor a new directory.")],
    form: Annotated[
        Form, typer.Option("--format", help="Messages by line, Harbor's job directory, Inspect's log.")
    ] = Form.JSONL,
) -> None:
    """Write every episode that has ended for another tool: messages, trajectories with ids, or a log."""
    from sandbox_rl.view.formats import Format
    from sandbox_rl.view.formats import export_episodes as write
    from sandbox_rl.view.opened import open_run

    with open_run(run, whole=True) as opened:
        count = write(opened, Format(form.value), output)
    typer.echo(f"{output}: {count:,} episodes")
