"""`sandbox-rl self-check`: attack this machine's sandboxes and scoring."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sandbox_rl.sandboxes.base import SandboxInfo
    from sandbox_rl.sandboxes.self_check import CheckRow

__all__ = ["app"]

app = typer.Typer()


@app.command("self-check")
def self_check(
    backend: Annotated[str, typer.Option(metavar="NAME", help="embedded, docker or ray.")] = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    only: Annotated[
        str, typer.Option("--cases", metavar="PREFIX", help="Only cases whose id starts so, e.g. ISO.")
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Values of a recipe's `sandbox` block: limits.memory_mb=256."
        ),
    ] = None,
) -> None:
    """Attack this machine's sandboxes and scoring with every known case and say which promises hold.

    Exit code 1 if a case comes out otherwise than required.
    """
    from sandbox_rl.config.load import load_block
    from sandbox_rl.preflight.self_check import self_check as check
    from sandbox_rl.sandboxes.config import SandboxSettings

    block = load_block(SandboxSettings, {"type": backend}, settings or ())
    info, rows = asyncio.run(check(block, prefix=only, watch=None if as_json else _Progress()))
    failed = sum(row.verdict == "fail" for row in rows)
    if as_json:
        typer.echo(json.dumps({"backend": asdict(info), "cases": [asdict(row) for row in rows]}))
    else:
        typer.echo(err=True)
        _show(info, rows)
    if failed:
        sys.exit(1)


class _Progress:
    """Counts the rows on standard error."""

    def say(self, text: str) -> None:
        typer.echo(text, err=True)

    def row(self, row: CheckRow, number: int, of: int) -> None:
        typer.echo(f"\r{number}/{of} {row.case:10}", nl=False, err=True)


def _show(info: SandboxInfo, rows: list[CheckRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{info.backend}: {info.tier} ({info.version})")
    for heading in ("case", "attack", "required", "observed", "result"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row.case, row.title, row.required, row.observed, row.verdict.value)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    held = sum(row.verdict == "pass" for row in rows)
    console.print(f"{held} of {len(rows)} as required", highlight=False)
    for sentence in info.lacks:
        console.print(f"Lacks: {sentence}", highlight=False)
