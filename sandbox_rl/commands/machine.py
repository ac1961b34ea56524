"""`sandbox-rl doctor`, `self-check`, `python-env` and `image`: this machine and its sandboxes."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox_rl.command_line import DIFFERS
from sandbox_rl.errors import ConfigError

if TYPE_CHECKING:
    from sandbox_rl.preflight.self_check import CheckRow
    from sandbox_rl.sandboxes.base import SandboxInfo

app = typer.Typer()
image = typer.Typer(help="Build or load the image that the docker backend uses.", no_args_is_help=True)
app.add_typer(image, name="image")

HostOption = Annotated[str, typer.Option("--host", metavar="URL", help="The engine, if not DOCKER_HOST.")]
TlsOption = Annotated[
    Path | None, typer.Option("--tls", metavar="DIR", help="Keys for tcp://, as for docker.")
]
DigestOption = Annotated[
    str, typer.Option("--digest", metavar="sha256:…", help="What must come out, else exit code 2.")
]


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
        raise typer.Exit(DIFFERS)


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
    if as_json:
        info, rows = asyncio.run(check(block, prefix=only))
        typer.echo(json.dumps({"backend": asdict(info), "cases": [asdict(row) for row in rows]}))
    else:
        info, rows = asyncio.run(check(block, prefix=only, say=_say, done=_count))
        _say("")
        _show(info, rows)
    if any(row.verdict == "fail" for row in rows):
        raise typer.Exit(DIFFERS)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _count(row: CheckRow, number: int, of: int) -> None:
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


@app.command("python-env")
def python_env(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A new or empty directory.")],
    requirements: Annotated[
        Path, typer.Option(metavar="FILE", help="What is in it, as pip reads it.")
    ] = Path("configs/sandbox/requirements.txt"),
) -> None:
    """Make a Python environment for sandboxes that holds nothing of the trainer's.

    Prints the line for the recipe. One that is there already, of the same requirements, is kept.
    """
    from sandbox_rl.sandboxes.python_env import make_python_env

    make_python_env(directory, requirements)
    typer.echo(f"sandbox.python_env={directory.resolve()}")


def _check_digest_form(digest: str) -> None:
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ConfigError(f"--digest: {digest!r}, expected sha256: and 64 hexadecimal digits")


@image.command("build")
def build(
    directory: Annotated[Path, typer.Argument(help="Directory with a Dockerfile.")] = Path("configs/sandbox"),
    tag: Annotated[str, typer.Option(help="Name of the image.")] = "sandbox-rl:latest",
    base: Annotated[
        str, typer.Option(metavar="IMAGE", help="For the Dockerfile's BASE: another image, or one by digest.")
    ] = "",
    digest: DigestOption = "",
    host: HostOption = "",
    tls: TlsOption = None,
) -> None:
    """Build the image and print its id, which `sandbox.digest` can pin."""
    from sandbox_rl.sandboxes.docker.engine import DockerEngine
    from sandbox_rl.sandboxes.docker.image import check_digest

    _check_digest_form(digest)
    dockerfile = directory / "Dockerfile"
    if not dockerfile.is_file():
        raise ConfigError(
            f"{directory}: there is no Dockerfile; expected a directory such as configs/sandbox"
        )
    found = re.search(r"^ARG BASE=(\S+)", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
    if base and not found:
        raise ConfigError(f"--base: {dockerfile} has no line `ARG BASE=…`, so {base} would not be used")
    with closing(DockerEngine(host, tls)) as engine:
        if found:
            typer.echo(f"FROM {base or found[1]}", err=True)
        engine.build(directory, tag, {"BASE": base} if base else {})
        typer.echo(check_digest(engine, tag, digest))


@image.command("load")
def load(
    archive: Annotated[Path, typer.Argument(help="What `docker save` wrote.")],
    digest: DigestOption = "",
    host: HostOption = "",
    tls: TlsOption = None,
) -> None:
    """Put a saved image onto the engine and print its id, which `sandbox.digest` can pin."""
    from sandbox_rl.sandboxes.docker.engine import DockerEngine
    from sandbox_rl.sandboxes.docker.image import check_digest

    _check_digest_form(digest)
    if not archive.is_file():
        raise ConfigError(f"{archive}: no such file; expected an archive written by `docker save`")
    with closing(DockerEngine(host, tls)) as engine:
        typer.echo(check_digest(engine, engine.load(archive), digest))
