"""`sandbox-rl view`, `show`, `tokens` and `export-episodes`: runs and episodes for a person."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sandbox_rl.view import Format

app = typer.Typer()

Run = Annotated[Path, typer.Argument(metavar="RUN", help="What `train` or `eval` wrote.")]


@app.command()
def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="What `train` or `eval` wrote.")],
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.html|DIR", help="Write the page there instead of serving it.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Where to listen; elsewhere than on loopback the page asks for a token."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
) -> None:
    """Open a page of runs: is it learning, every episode, every token. Reads only, also while they go on."""
    if export is not None:
        from sandbox_rl.view.export import export_page

        typer.echo(export_page(runs, export))
        return
    from sandbox_rl.view.server import Viewer, serve

    with suppress(KeyboardInterrupt):
        asyncio.run(serve(Viewer(runs, host, port), lambda url: typer.echo(f"{url}\nCtrl-C ends it.")))


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


@app.command("export-episodes")
def export_episodes(
    run: Run,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new file; for harbor a new directory.")],
    form: Annotated[
        Format, typer.Option("--format", help="Messages by line, Harbor's job directory, Inspect's log.")
    ] = Format.JSONL,
) -> None:
    """Write every episode that has ended for another tool: messages, trajectories with ids, or a log."""
    from sandbox_rl.view.formats import export_episodes as write
    from sandbox_rl.view.opened import open_run

    with open_run(run, whole=True) as opened:
        count = write(opened, form, output)
    typer.echo(f"{output}: {count:,} episodes")
