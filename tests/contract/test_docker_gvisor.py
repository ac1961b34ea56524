"""The docker backend under gVisor, where system calls meet a kernel of the sandbox's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.docker.options import USERS
from sandbox_rl.types import ExecStatus

from ..docker_engine import docker_engine, settings_for, unavailable
from .core import check_core


@pytest.fixture(scope="module")
def gvisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine that knows `runsc`: without a network of its own, and by ptrace, which needs no KVM."""
    runsc = shutil.which("runsc")
    if runsc is None:
        unavailable("runsc is missing; apt-get install runsc")
    wrapper = tmp_path_factory.mktemp("gvisor") / "runsc"
    wrapper.write_text(f'#!/bin/sh\nexec {runsc} --network=none --platform=ptrace "$@"\n')
    wrapper.chmod(0o755)
    for directory in wrapper.parents[:2]:
        Path(directory).chmod(0o755)
    with docker_engine("--add-runtime", f"runsc={wrapper}") as host:
        yield host


@pytest.mark.slow
async def test_the_core_under_gvisor(gvisor: str) -> None:
    async with DockerBackend(settings=settings_for(gvisor, runtime="runsc")) as backend:
        assert backend.info.tier == "container+runsc"
        await check_core(backend)
        async with backend.sandbox() as sandbox:
            seen = await sandbox.exec("dmesg | head -1; id -u", timeout=60)
            assert b"Starting gVisor" in seen.stdout.head
            assert int(seen.stdout.head.split()[-1]) in USERS
            large = await sandbox.exec("python3 -c 'x = bytearray(900 << 20)'; echo $?", timeout=60)
            assert large.status is not ExecStatus.OK or large.stdout.head != b"0\n"
