"""`sandbox-rl build-data`: context tasks from your own rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


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
