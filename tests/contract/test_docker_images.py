"""Images: built, loaded and checked from the command line, and without Python or any library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.docker.engine import DockerEngine

from ..docker_engine import IMAGE, settings_for, unavailable
from .core import check_core
from .test_docker import ROOT, refusal

BUSYBOX = "sandbox-rl-busybox:latest"
ID = re.compile(r"sha256:[0-9a-f]{64}\n")
NOBODYS = "sha256:" + "0" * 64


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox_rl.cli", "image", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


def refused(*arguments: str) -> str:
    done = command_line(*arguments)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("FROM ")]
    assert len(lines) == 1
    return lines[0]


def import_image(host: str, archive: Path, name: str) -> None:
    command = ["docker", "-H", host, "import", archive, name]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def busybox(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of one static program and the links to it: no C library, no bash, no Python."""
    program = shutil.which("busybox")
    if program is None or subprocess.run(["ldd", program], capture_output=True).returncode == 0:
        unavailable("a static busybox is missing; apt-get install busybox-static")
    here = tmp_path_factory.mktemp("busybox")
    (here / "bin").mkdir()
    shutil.copy(program, here / "bin/busybox")
    for name in subprocess.run(
        ["busybox", "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        if name != "busybox":
            (here / "bin" / name).symlink_to("busybox")
    with tarfile.open(here / "image.tar", "w") as tar:
        tar.add(here / "bin", "bin")
    import_image(engine, here / "image.tar", BUSYBOX)
    return BUSYBOX


async def test_an_image_without_python_gets_the_agent_put_in(engine: str, busybox: str) -> None:
    settings = settings_for(engine, image=busybox, read_only={})
    async with DockerBackend(settings=settings) as backend:
        assert "put in" in backend.info.details["agent"]
        await check_core(backend)
        async with backend.sandbox() as sandbox:
            seen = await sandbox.exec("ls / | tr '\\n' ' '; which python3; echo $0", timeout=60)
            assert seen.stdout.head == b"bin dev etc home proc sys testbed tmp sh\n"
    made = fitted(engine)
    async with DockerBackend(settings=settings):
        pass
    assert fitted(engine) == made  # used again


async def test_an_image_with_python_is_used_as_it_is(engine: str) -> None:
    async with DockerBackend(settings=settings_for(engine)) as backend:
        assert "agent" not in backend.info.details


def fitted(host: str) -> list[str]:
    listed = ["docker", "-H", host, "images", "-q", "sandbox-rl-fitted"]
    return subprocess.run(listed, capture_output=True, text=True, check=True, timeout=120).stdout.split()


async def test_an_image_without_a_shell(engine: str, tmp_path: Path) -> None:
    (tmp_path / "readme").write_text("nothing here")
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.add(tmp_path / "readme", "readme")
    import_image(engine, tmp_path / "image.tar", "sandbox-rl-empty:latest")
    async with DockerBackend(
        settings=settings_for(engine, image="sandbox-rl-empty", read_only={})
    ) as backend:
        async with backend.sandbox() as sandbox:
            result = await sandbox.exec("true", timeout=60)
            assert result.exit_code in (126, 127)


async def test_build_from_a_local_base_and_pin_it(engine: str, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "ARG BASE=nobody/has-this:1\nFROM ${BASE}\n"
        "RUN mkdir -p /opt && echo made > /opt/mark\nCOPY given /opt/\n"
    )
    (tmp_path / "given").write_text("given\n")
    arguments = ["build", str(tmp_path), "--tag", "mine:1", "--host", engine]
    done = command_line(*arguments, "--base", busybox)
    assert done.returncode == 0, done.stderr
    assert f"FROM {busybox}" in done.stderr
    assert ID.fullmatch(done.stdout)
    digest = done.stdout.strip()
    assert command_line(*arguments, "--base", busybox, "--digest", digest).stdout == done.stdout
    said = refused(*arguments, "--base", busybox, "--digest", NOBODYS)
    assert digest in said
    assert NOBODYS in said
    assert str(tmp_path / "Dockerfile") in refused(*arguments)  # there is no such base
    settings = settings_for(engine, image="mine:1", digest=digest, read_only={})
    async with DockerBackend(settings=settings) as backend, backend.sandbox() as sandbox:
        result = await sandbox.exec("cat /opt/mark /opt/given", timeout=60)
        assert result.stdout.head == b"made\ngiven\n"
    assert NOBODYS in await refusal(settings_for(engine, image="mine:1", digest=NOBODYS, read_only={}))


def test_load_what_was_saved(engine: str, tmp_path: Path) -> None:
    archive = tmp_path / "saved.tar"
    command = ["docker", "-H", engine, "save", "-o", archive, IMAGE]
    subprocess.run(command, check=True, timeout=120)
    done = command_line("load", str(archive), "--host", engine)
    assert done.returncode == 0, done.stderr
    connected = DockerEngine(engine)
    try:
        assert done.stdout.strip() == connected.image(IMAGE)[0]
    finally:
        connected.close()
    assert (
        command_line("load", str(archive), "--host", engine, "--digest", done.stdout.strip()).returncode == 0
    )
    assert NOBODYS in refused("load", str(archive), "--host", engine, "--digest", NOBODYS)


def test_what_is_no_image(engine: str, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(4096))
    assert "failed" in refused("load", str(tmp_path / "noise"), "--host", engine)
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "noise", "noise")
    assert str(tmp_path / "other.tar") in refused("load", str(tmp_path / "other.tar"), "--host", engine)
    assert "no such file" in refused("load", str(tmp_path / "none"), "--host", engine)
    assert "no Dockerfile" in refused("build", str(tmp_path), "--host", engine)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nNONSENSE\n")
    assert "NONSENSE" in refused("build", str(tmp_path), "--host", engine)
    assert "ARG BASE" in refused("build", str(tmp_path), "--host", engine, "--base", "x:1")
