"""The commands about sandboxes alone: they need neither a recipe nor a model."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandbox_rl.errors import ConfigError

if TYPE_CHECKING:
    from sandbox_rl.sandboxes.base import SandboxBackend, SandboxInfo, SandboxLimits
    from sandbox_rl.sandboxes.config import BackendSettings
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
        typer.Argument(metavar="[KEY=VALUE]...", help="Of the `sandbox` block: limits.memory_mb=256."),
    ] = None,
) -> None:
    """Attack this machine's sandboxes and scoring with every known case and say which promises hold.

    Exit code 1 if a case comes out otherwise than required.
    """
    from sandbox_rl.config.load import load_block
    from sandbox_rl.sandboxes.config import SandboxSettings

    block = load_block(SandboxSettings, {"type": backend}, settings or ())
    info, rows = asyncio.run(_checked(block, only, quiet=as_json))
    failed = sum(row.verdict == "fail" for row in rows)
    if as_json:
        typer.echo(json.dumps({"backend": _plain(info), "cases": [_plain(row) for row in rows]}))
    else:
        _show(info, rows)
    if failed:
        sys.exit(1)


async def _checked(
    settings: BackendSettings, only: str, *, quiet: bool
) -> tuple[SandboxInfo, list[CheckRow]]:
    """Facts of the backend, and a row for each case by id.

    Raises:
        SetupError: this machine can make no such sandbox.
        ConfigError: no case is called so.
    """
    from sandbox_rl.preflight.scoring_attacks import ATTACKS, check_scoring
    from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS
    from sandbox_rl.sandboxes.self_check import self_check as run

    cases = [case for case in (*CONTROLS, *ALL_CASES) if case.id.startswith(only)]
    scoring = "SCO-20".startswith(only) or only.startswith("SCO-20")
    if not cases and not scoring:
        raise ConfigError(f"--cases: no case's id starts with {only!r}; ids begin with ISO, RES, …")
    async with settings.backend() as entered:
        info = entered.info
    rows: list[CheckRow] = []
    count = len(cases) + (ATTACKS if scoring else 0) + (bool(cases) and not only)

    def made(assumed: SandboxLimits) -> SandboxBackend:
        if settings.limits != assumed and not quiet:
            other = _plain(settings.limits).items() - _plain(assumed).items()
            said = ", ".join(f"{name}={value}" for name, value in sorted(other))
            typer.echo(f"The cases assume other limits than {said}; a failure may mean only that.", err=True)
        return settings.backend()

    sandboxes = run(made, cases=cases, lag=not only) if cases else None
    async for row in _all_rows(sandboxes, check_scoring() if scoring else None):
        rows.append(row)
        if not quiet:
            typer.echo(f"\r{len(rows)}/{count} {row.case:10}", nl=False, err=True)
    if not quiet:
        typer.echo(err=True)
    return info, sorted(rows, key=lambda row: row.case)


async def _all_rows(*parts: AsyncIterator[CheckRow] | None) -> AsyncIterator[CheckRow]:
    """One part after the other."""
    for part in filter(None, parts):
        async for row in part:
            yield row


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


def _plain(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(value)


@app.command("python-env")
def python_env(
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
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


image = typer.Typer(help="The image of the docker backend.", no_args_is_help=True)
app.add_typer(image, name="image")

HostOption = Annotated[str, typer.Option("--host", metavar="URL", help="The engine, if not DOCKER_HOST.")]
TlsOption = Annotated[
    Path | None, typer.Option("--tls", metavar="DIR", help="Keys for tcp://, as for docker.")
]
DigestOption = Annotated[
    str, typer.Option("--digest", metavar="sha256:…", help="What must come out, else exit code 2.")
]


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
