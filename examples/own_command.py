"""A command of your own. An installed package adds it to `sandbox-rl` by an entry point:

    [project.entry-points."sandbox_rl.commands"]
    count = "own_command:app"

Names of the other kinds are added likewise, by the groups `sandbox_rl.sandboxes`, `.sources`, `.scorers`,
`.tools`, `.dialects` and `.experts`; without an entry point they are named by import path.
"""

from __future__ import annotations

from pathlib import Path

import typer

from sandbox_rl import read_journal

app = typer.Typer()


@app.command()
def count(run: Path) -> None:
    """Say how many episodes of a run earned something."""
    rewards = [episode["reward"] for episode in read_journal(run / "journal")]
    typer.echo(f"{sum(bool(value) for value in rewards)} of {len(rewards)} episodes earned something")
