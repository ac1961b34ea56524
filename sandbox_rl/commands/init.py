"""`sandbox-rl init`: a first recipe for one's own rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def init(
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS", help="A .jsonl, .json, .csv, .tsv or .parquet file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The new recipe.")] = Path(
        "my-run.yaml"
    ),
    model: Annotated[
        str | None,
        typer.Option("--model", help="A directory or Hub id; by default what this machine can train."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The column of the questions.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="The column of the gold answers.")] = None,
) -> None:
    """Write a commented recipe for your rows, your model and this machine.

    Columns and scorer are guessed from the rows; the reasons stand beside the values.
    """
    from sandbox_rl.errors import ConfigError
    from sandbox_rl.runs.starter import guess, starter_recipe
    from sandbox_rl.tasks.rows import open_table
    from sandbox_rl.training.cards import find_cards

    if output.exists():
        raise ConfigError(f"--output: {output} exists already, expected a new file; name another one")
    if not output.parent.is_dir():
        raise ConfigError(f"--output: there is no directory {output.parent}, expected one that is there")
    table = open_table(rows, str(rows))
    given = {name: column for name, column in (("prompt", prompt), ("answer", answer)) if column is not None}
    text = starter_recipe(
        guess(table, given),
        name=output.stem,
        rows=len(table),
        path=os.path.relpath(rows.resolve(), output.resolve().parent),
        model=model,
        cards=find_cards(),
    )
    with output.open("x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(f"Wrote {output}. Look at it, then: sandbox-rl train {output} --dry-run")
