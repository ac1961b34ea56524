"""`sandbox-rl check`, `bundle` and `verify`: whether a run's records are what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox_rl.command_line import DIFFERS, DONE_IN_PART, RunPath

app = typer.Typer()

SHOWN = 10


@app.command()
def check(run_dir: RunPath) -> None:
    """Prove from a run's files that each sample was used as scheduled, or name the first that was not.

    Exit code 1 if one was not. Nothing is written.
    """
    from sandbox_rl.runs.check import check_run

    found = check_run(run_dir)
    typer.echo(f"{run_dir}: {found}")
    if found.violation is not None:
        raise typer.Exit(DIFFERS)


@app.command()
def bundle(
    run: RunPath,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The new file; RUN.bundle.zip by default."),
    ] = None,
) -> None:
    """Pack a run's recipe, versions, ledger, episodes, metrics and tasks into one file, without weights.

    `sandbox-rl verify` checks it on any machine. It holds prompts, answers and what the policy wrote.
    """
    from sandbox_rl.replay.bundle import bundle as pack

    typer.echo(str(pack(run, output)))


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
        raise typer.Exit(DIFFERS)
    typer.echo(f"{bundle}: all {found.files} files are what the manifest says")
    if found.damaged is not None:
        typer.echo(inert(f"{bundle}: it was packed from damaged records: {found.damaged}"))
        raise typer.Exit(DIFFERS)
    typer.echo(inert(f"ledger: {found.ledger or 'no update had finished'}"))
    for episode in found.other[:SHOWN]:
        typer.echo(inert(f"{episode.episode}: reward {episode.reward} recorded, {episode.new_reward} now"))
    same = len(found.scored) - len(found.other) - found.not_judged
    typer.echo(
        f"{len(found.scored)} episodes scored again: {same} the same, {len(found.other)} other, "
        f"{found.not_judged} not judged; {found.left} left, whose scorer is not one of ours"
    )
    if found.other or (found.ledger is not None and found.ledger.violation is not None):
        raise typer.Exit(DIFFERS)
    if found.not_judged:
        raise typer.Exit(DONE_IN_PART)
