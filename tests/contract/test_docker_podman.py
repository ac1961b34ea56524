"""The docker backend on Podman's socket, which speaks Docker's API with differences."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.options import USERS
from sandbox_rl.sandboxes.ownership import LABEL

from ..docker_engine import make_skeleton, settings_for, unavailable
from .core import check_core

# A service of its own, without systemd, and with limits that a container's root may give itself.
CONTAINERS_CONF = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'


@pytest.fixture(scope="module")
def podman() -> Iterator[str]:
    if shutil.which("podman") is None or os.geteuid() != 0:
        unavailable("podman is missing or this is not root; apt-get install podman runc")
    here = Path(tempfile.mkdtemp(prefix="sandbox-rl-podman-"))
    (here / "containers.conf").write_text(CONTAINERS_CONF)
    places = [
        f"--{option}={here / place}" for option, place in (("root", "r"), ("runroot", "s"), ("tmpdir", "t"))
    ]
    choices = ["--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"]
    host = f"unix://{here}/podman.sock"
    with (here / "log").open("w") as log:
        service = subprocess.Popen(
            ["podman", *places, *choices, "system", "service", "--time=0", host],
            env=os.environ | {"CONTAINERS_CONF": str(here / "containers.conf")},
            stdout=log,
            stderr=log,
        )
    with service:
        try:
            deadline = time.monotonic() + 60
            while not (here / "podman.sock").exists():
                if service.poll() is not None or time.monotonic() > deadline:
                    unavailable(f"podman does not start: {(here / 'log').read_text()[-300:]}")
                time.sleep(0.1)
            make_skeleton(host)
            yield host
        finally:
            service.terminate()
    subprocess.run(["umount", "-q", *map(str, here.glob("root/overlay"))], check=False)
    shutil.rmtree(here, ignore_errors=True)


async def test_the_core(podman: str) -> None:
    async with DockerBackend(settings=settings_for(podman)) as backend:
        assert backend.info.version.startswith("podman ")
        await check_core(backend)
        async with backend.sandbox() as sandbox:
            seen = await sandbox.exec(
                "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; id -u", timeout=10
            )
            *held, user = seen.stdout.head.split()
            assert held == b"CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2".split()
            assert int(user) in USERS
            assert (await sandbox.exec("unshare -U true", timeout=60)).exit_code == 1  # our own profile
            assert (await sandbox.exec("touch /usr/x || touch /x", timeout=60)).exit_code == 1
    await asyncio.to_thread(nothing_is_left, podman)


def nothing_is_left(host: str) -> None:
    engine = DockerEngine(host)
    try:
        deadline = time.monotonic() + 60
        while engine.labelled(LABEL) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert engine.labelled(LABEL) == []
    finally:
        engine.close()
