"""`sandbox-rl show` and `sandbox-rl tokens`: runs and episodes for those without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()

Run = Annotated[Path, typer.Argument(metavar="RUN", help="What `train` or `eval` wrote.")]


@app.command()
def show(
    run: Run,
    episode: Annotated[str | None, typer.Argument(metavar="[EPISODE]", help="The id of an episode.")] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help="List the episodes for which this holds: 'reward = 1 AND turns > 5'."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="List the episodes with this in id, task, answer or the scorer's words."),
    ] = None,
) -> None:
    """Show in the terminal whether a run learns, and its episodes; or one episode turn by turn."""
    from sandbox_rl.view.opened import open_run
    from sandbox_rl.view.terminal import episode_lines, run_lines

    with open_run(run, whole=True) as opened:
        query = {name: value for name, value in (("sql", where), ("text", text)) if value}
        for line in episode_lines(opened, episode) if episode else run_lines(opened, query):
            typer.echo(line)


@app.command()
def tokens(
    run: Run, episode: Annotated[str, typer.Argument(metavar="EPISODE", help="The id of an episode.")]
) -> None:
    """Show every token of an episode: origin, id, log-prob, weights, whether it was trained, text."""
    from sandbox_rl.view.opened import open_run
    from sandbox_rl.view.terminal import token_lines

    with open_run(run, whole=True) as opened:
        for line in token_lines(opened, episode):
            typer.echo(line)
