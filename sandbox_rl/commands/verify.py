"""`sandbox-rl verify`: whether a bundle is what was packed, and scores what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox_rl.command_line import DONE_IN_PART

__all__ = ["app"]

app = typer.Typer()

WRONG = 1
"""Exit code: a digest or a reward is not what the bundle says."""
SHOWN = 10


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `sandbox-rl bundle` made.")],
) -> None:
    """Check every digest of a bundle and its ledger, as `check` does, and score its answers again.

    Nothing of it is run or kept. Exit code 1: something is not what it says; 3: some answers could not be
    judged here.
    """
    from sandbox_rl.replay.verification import verify as check
    from sandbox_rl.view.terminal import inert  # a stranger's names

    found = check(bundle)
    for line in found.wrong[:SHOWN]:
        typer.echo(inert(line))
    if found.wrong:
        typer.echo(f"{bundle}: {len(found.wrong)} files are not what the manifest says, {found.files} are")
        raise typer.Exit(WRONG)
    typer.echo(f"{bundle}: all {found.files} files are what the manifest says")
    if found.damaged is not None:
        typer.echo(inert(f"{bundle}: it was packed from damaged records: {found.damaged}"))
        raise typer.Exit(WRONG)
    typer.echo(inert(f"ledger: {found.ledger or 'no update had finished'}"))
    for episode in found.other[:SHOWN]:
        typer.echo(inert(f"{episode.episode}: reward {episode.reward} recorded, {episode.new_reward} now"))
    same = len(found.scored) - len(found.other) - found.not_judged
    typer.echo(
        f"{len(found.scored)} episodes scored again: {same} the same, {len(found.other)} other, "
        f"{found.not_judged} not judged; {found.left} left, whose scorer is not one of ours"
    )
    if found.other or (found.ledger is not None and found.ledger.violation is not None):
        raise typer.Exit(WRONG)
    if found.not_judged:
        raise typer.Exit(DONE_IN_PART)
