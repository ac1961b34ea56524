"""`sandbox-rl init` and `build-data`: from one's own rows to a recipe, and to tasks with documents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

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
    from sandbox_rl.outputs import check_new, write_new
    from sandbox_rl.runs.starter import guess, starter_recipe
    from sandbox_rl.tasks.rows import open_table
    from sandbox_rl.training.placement import find_cards

    check_new(output, "--output")
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
    write_new(output, text, "--output")
    typer.echo(f"Wrote {output}. Look at it, then: sandbox-rl train {output} --dry-run")


@app.command("build-data")
def build_data(
    settings: Annotated[
        Path, typer.Argument(metavar="SETTINGS", help="YAML: source, output_dir, distractors, examples …")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace values: distractors=5.")
    ] = None,
) -> None:
    """Turn context + question + answer rows into tasks with documents as files.

    Contexts of several documents become several files, long ones are split, short ones get distractor
    files from other rows, earlier questions become worked examples. Writes train.jsonl, held_out.jsonl and
    report.json; the split goes by context, so none is on both sides.
    """
    from sandbox_rl.build_data.builder import build_data as build
    from sandbox_rl.build_data.config import BuildSettings
    from sandbox_rl.config.load import load_settings
    from sandbox_rl.terminal import Terminal

    loaded = load_settings(BuildSettings, settings, overrides or ())
    base_dir = settings.resolve().parent
    report = build(loaded, base_dir=base_dir)
    rows = [
        ["rows read", f"{report.rows:,}"],
        ["training tasks", f"{report.train:,}"],
        ["held-out tasks", f"{report.held_out:,}"],
        ["contexts", f"{report.contexts:,}"],
        ["files", f"{report.files:,}"],
        ["  of them distractors", f"{report.distractors:,}"],
        ["worked examples", f"{report.examples:,}"],
        ["mean prompt, characters", f"{report.mean_prompt_chars:.0f}"],
        ["mean files of a task, characters", f"{report.mean_files_chars:.0f}"],
        ["rows left out", f"{report.dropped_rows:,}"],
        *([f"  by {field}", f"{count:,}"] for field, count in report.by_field.items()),
    ]
    terminal = Terminal()
    terminal.table("Built", ["", "count"], rows)
    terminal.say(str(base_dir / loaded.output_dir))
