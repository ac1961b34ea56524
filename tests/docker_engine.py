"""A Docker engine of the tests' own; without one they are skipped, except in CI, where they fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.config import DockerSettings

__all__ = ["IMAGE", "docker_engine", "make_skeleton", "settings_for", "unavailable"]

SCRIPT = Path(__file__).parents[1] / "scripts" / "start_docker_engine"
IMAGE = "sandbox-rl-skeleton:latest"
STOP_TIMEOUT_S = 60


def settings_for(host: str, limits: SandboxLimits | None = None, **values: object) -> DockerSettings:
    """For the engine at `host`, with the image that holds this machine's /usr."""
    return DockerSettings.model_validate(
        {
            "type": "docker",
            "host": host,
            "image": IMAGE,
            "read_only": {"/usr": "/usr"},
            "limits": limits or SandboxLimits(),
            **values,
        }
    )


def unavailable(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"no Docker engine for the tests: {why}")
    pytest.skip(f"NO DOCKER ENGINE, the docker backend is NOT TESTED: {why}")


@contextmanager
def docker_engine(*options: str) -> Iterator[str]:
    """Address of an engine that ends with the block; `options` are dockerd's own."""
    if not (shutil.which("dockerd") or Path("/usr/sbin/dockerd").exists()):
        unavailable("dockerd is missing; apt-get install docker.io")
    if os.geteuid() != 0:
        unavailable("starting one needs root")
    directory = Path(tempfile.mkdtemp(prefix="sandbox-rl-docker-"))
    try:
        started = subprocess.run([SCRIPT, directory, *options], capture_output=True, text=True, timeout=250)
        if started.returncode:
            unavailable(started.stderr.strip()[-300:])
        yield started.stdout.strip().removeprefix("DOCKER_HOST=")
    finally:
        _stop(directory / "dockerd.pid")
        shutil.rmtree(directory, ignore_errors=True)


def make_skeleton(host: str) -> None:
    """The image that holds this machine's /usr, on an engine."""
    subprocess.run([SCRIPT.with_name("make_skeleton_image"), host, IMAGE], check=True, timeout=200)


def _stop(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
