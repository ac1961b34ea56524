"""A command of your own. An installed package adds it to `sandbox-rl` by an entry point:

    [project.entry-points."sandbox_rl.commands"]
    count = "own_command:app"

Names of the other kinds are added likewise, by the groups `sandbox_rl.sandboxes`, `.sources`, `.scorers`,
`.tools`, `.dialects` and `.experts`; without an entry point they are named by import path.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

app = typer.Typer()


@app.command()
def count(run: Path) -> None:
    """Say how many episodes of a run earned something."""
    lines = (run / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [json.loads(line)["reward"]["value"] for line in lines]
    typer.echo(f"{sum(bool(value) for value in rewards)} of {len(rewards)} episodes earned something")
