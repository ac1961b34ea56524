"""What containers are made of and carry, and networks that an engine cannot give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sandbox_rl.errors import SetupError
from sandbox_rl.sandboxes.cases import ALL_CASES, HostWitness, run_case
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.options import USERS, with_network
from sandbox_rl.sandboxes.egress.listener import HandoverDirectory
from sandbox_rl.sandboxes.egress.rules import NetworkRules
from sandbox_rl.sandboxes.ownership import LABEL, RUN

from ..docker_engine import IMAGE, settings_for

QUOTAS, TERMINALS = (next(case for case in ALL_CASES if case.id == name) for name in ("RES-20b", "RES-20"))


def docker(engine: str, *arguments: str) -> str:
    command = ["docker", "-H", engine, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


async def test_a_tag_that_moves_changes_no_container(engine: str) -> None:
    """Containers are made by the id that was checked."""
    tag = "sandbox-rl-moving:latest"
    docker(engine, "tag", IMAGE, tag)
    wanted = docker(engine, "image", "inspect", "-f", "{{.Id}}", IMAGE)
    try:
        async with DockerBackend(settings=settings_for(engine, image=tag, digest=wanted)) as backend:
            docker(engine, "rmi", tag)
            made = docker(engine, "create", IMAGE, "true")
            docker(engine, "commit", made, tag)
            docker(engine, "rm", made)
            async with backend.sandbox() as sandbox:
                image = docker(engine, "inspect", "-f", "{{.Image}}", sandbox.id)
        assert image == wanted
        assert docker(engine, "image", "inspect", "-f", "{{.Id}}", tag) != wanted
    finally:
        docker(engine, "rmi", "-f", tag)


async def test_every_container_has_a_user_of_its_own(engine: str, witness: HostWitness) -> None:
    """What the kernel counts per user, none takes from another: the one case is the whole of it."""
    async with DockerBackend(settings=settings_for(engine)) as backend:
        assert (await run_case(backend, QUOTAS, witness, patience=4)).problems == ()
        async with backend.sandbox() as one, backend.sandbox() as two:
            users = [
                (await box.exec("id -u; touch ~/x /tmp/x x", timeout=60)).stdout.head for box in (one, two)
            ]
        assert len({int(user) for user in users} & set(USERS)) == 2


async def test_every_container_has_terminals_of_its_own(engine: str, witness: HostWitness) -> None:
    """A few, which work; the volume that they are on goes with the container."""
    async with DockerBackend(settings=settings_for(engine)) as backend:
        assert (await run_case(backend, TERMINALS, witness, patience=4)).problems == ()
        async with backend.sandbox() as sandbox:
            told = await sandbox.exec("python3 -c 'import pty; pty.spawn([\"tty\"])'", timeout=60)
            assert told.stdout.head.split() == [b"/dev/pts/0"]
            assert docker(engine, "volume", "ls", "-q")
    assert docker(engine, "volume", "ls", "-q") == ""


async def test_containers_carry_the_name_of_their_run(engine: str) -> None:
    host = DockerEngine(engine)
    try:
        async with DockerBackend(settings=settings_for(engine, run="my-run")) as backend, backend.sandbox():
            assert [labels[RUN] for _, labels in host.labelled(f"{RUN}=my-run")] == ["my-run"]
            assert all(LABEL in labels for _, labels in host.labelled(RUN))
    finally:
        host.close()


def test_directories_of_killed_owners_go_at_the_next_start() -> None:
    made = "from sandbox_rl.sandboxes.egress.listener import HandoverDirectory as Made; import os, signal\n"
    made += "d = Made()\n"
    made += "print(d.socket('x').path, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, timeout=60)
    left = Path(killed.stdout.strip()).parent
    assert left.is_dir()
    mine = HandoverDirectory()
    try:
        assert not left.exists()
        theirs = HandoverDirectory()  # of a living owner
        theirs.close()
        handover = mine.socket("y")
        assert handover.path.exists()
        handover.close()
    finally:
        mine.close()


@pytest.mark.parametrize(
    ("local", "runtime", "said"), [(False, "", "this machine"), (True, "runsc", "runsc")]
)
@pytest.mark.parametrize("mode", ["allowlist", "full"])
def test_networks_that_cannot_be(mode: str, local: bool, runtime: str, said: str) -> None:
    settings = DockerSettings(type="docker", runtime=runtime)
    with pytest.raises(SetupError) as caught:
        with_network(settings, NetworkRules(mode, ("example.org",)), local=local)  # type: ignore[arg-type]
    assert f"sandbox.network: {mode}" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
