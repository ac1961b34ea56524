"""`sandbox-rl view`: a page for runs, live, or as a file."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer()


@app.command()
def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="What `train` or `eval` wrote.")],
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html|DIR", help="Write the page there instead of serving it."),
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
