"""`sandbox-rl image`: build or load the image of the docker backend."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from sandbox_rl.errors import ConfigError

__all__ = ["app"]

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
