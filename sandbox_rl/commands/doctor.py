"""`sandbox-rl doctor`: what this machine has and lacks for training."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def doctor(
    place: Annotated[Path, typer.Option("--output-dir", help="Where runs are to be written.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list instead of lines.")] = False,
) -> None:
    """Look at Python, packages, GPU, sandboxes, disk and limits; say what each lack costs and what fixes it.

    Exit code 1 if something is missing without which training fails.
    """
    from sandbox_rl.preflight.doctor import examine

    found = asyncio.run(examine(place))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        for finding in found:
            typer.echo(f"{finding.state:<5} {finding.name:<17} {finding.found}")
            if finding.cost:
                typer.echo(f"{'':<23} costs: {finding.cost}\n{'':<23} fix:   {finding.fix}")
    if any(finding.state == "lack" for finding in found):
        sys.exit(1)
