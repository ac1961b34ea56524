"""Engines that are reached over TLS and over ssh, on this machine's loopback."""

from __future__ import annotations

import asyncio
import gc
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox_rl.errors import ConfigError, SandboxFault, SetupError
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.transport import find_engine
from sandbox_rl.sandboxes.ownership import LABEL

from ..docker_engine import docker_engine, settings_for, unavailable
from ..processes import commands, gone, reserved_port
from .core import check_core
from .test_docker import OWNER, ROOT, refusal


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)


def make_authority(directory: Path) -> None:
    """ca.pem and ca-key.pem."""
    directory.mkdir(exist_ok=True)
    subject = ("-subj", "/CN=an authority for tests")
    openssl(directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-keyout", "ca-key.pem", "-out", "ca.pem", *subject)  # fmt: skip


def make_keys(directory: Path, *, of: Path, name: str, uses: str) -> Path:
    """Keys of `name`, signed by the authority in `of`."""
    directory.mkdir()
    shutil.copy(of / "ca.pem", directory)
    (directory / "ext").write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={uses}\n")
    openssl(directory, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", "key.pem", "-out", "csr.pem", "-subj", f"/CN={name}")  # fmt: skip
    openssl(directory, "x509", "-req", "-in", "csr.pem", "-days", "2", "-CA", str(of / "ca.pem"),
            "-CAkey", str(of / "ca-key.pem"), "-set_serial", str(time.time_ns()), "-extfile", "ext",
            "-out", "cert.pem")  # fmt: skip
    return directory


@dataclass(frozen=True)
class TlsEngine:
    host: str
    keys: Path  # of a client that it trusts
    stranger: Path  # keys of somebody else's authority


@pytest.fixture(scope="module")
def tls_engine() -> Iterator[TlsEngine]:
    if shutil.which("openssl") is None:
        unavailable("openssl is missing; apt-get install openssl")
    with tempfile.TemporaryDirectory(prefix="sandbox-rl-tls-") as name:
        here = Path(name)
        make_authority(here)
        make_authority(here / "other")
        server = make_keys(here / "server", of=here, name="127.0.0.1", uses="serverAuth")
        client = make_keys(here / "client", of=here, name="client", uses="clientAuth")
        stranger = make_keys(here / "stranger", of=here / "other", name="stranger", uses="clientAuth")
        shutil.copy(here / "ca.pem", stranger)  # it trusts the engine, which does not trust it
        address = f"tcp://127.0.0.1:{reserved_port()}"
        files = {"cacert": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
        flags = [f"--tls{kind}={server / file}" for kind, file in files.items()]
        with docker_engine("--tlsverify", *flags, "-H", address):
            yield TlsEngine(address, client, stranger)


async def test_the_core_over_tls(tls_engine: TlsEngine) -> None:
    async with DockerBackend(settings=settings_for(tls_engine.host, tls=tls_engine.keys)) as backend:
        await check_core(backend)
        assert any("137" in sentence for sentence in backend.info.lacks)


async def test_the_keys_of_the_environment_count(
    tls_engine: TlsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", tls_engine.host)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tls_engine.keys))
    async with DockerBackend(settings=settings_for("")) as backend, backend.sandbox() as sandbox:
        assert (await sandbox.exec("echo there", timeout=60)).stdout.head == b"there\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK's own sockets
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("keys", ["none", "stranger", "of another server"])
async def test_who_does_not_belong_is_refused_in_one_line(
    tls_engine: TlsEngine, tmp_path: Path, keys: str
) -> None:
    tls = None if keys == "none" else tls_engine.stranger
    if keys == "of another server":
        make_authority(tmp_path)
        tls = make_keys(tmp_path / "keys", of=tmp_path, name="client", uses="clientAuth")
    said = await refusal(settings_for(tls_engine.host, tls=tls))
    assert "no Docker engine at tcp://127.0.0.1" in said
    gc.collect()


def test_nothing_outlives_a_killed_owner_over_tls(tls_engine: TlsEngine) -> None:
    settings = settings_for(tls_engine.host, tls=tls_engine.keys)
    killed_owner_leaves_nothing(settings, DockerEngine(tls_engine.host, tls_engine.keys))


def killed_owner_leaves_nothing(settings: DockerSettings, engine: DockerEngine) -> None:
    command = [sys.executable, "-c", OWNER, settings.model_dump_json()]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        with owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            assert len(engine.labelled(LABEL)) >= 2
            owner.kill()
        deadline = time.monotonic() + 60
        while engine.labelled(LABEL) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert engine.labelled(LABEL) == []
    finally:
        engine.close()


@pytest.fixture(scope="module")
def ssh_host(engine: str) -> Iterator[str]:
    """The tests' engine, through an sshd on loopback that knows one key."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).exists() or shutil.which("ssh") is None:
        unavailable("sshd is missing; apt-get install openssh-server")
    with tempfile.TemporaryDirectory(prefix="sandbox-rl-sshd-") as name:
        here = Path(name)
        for key in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", here / key], check=True)
        port = reserved_port()
        shutil.copy(here / "client.pub", here / "authorized")
        host_key = " ".join((here / "host.pub").read_text().split()[:2])
        (here / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
        (here / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{port}\nHostKey {here}/host\nAuthorizedKeysFile {here}/authorized\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n"
        )
        (here / "config").write_text(
            f"Host *\n  IdentityFile {here}/client\n  IdentitiesOnly yes\n  UserKnownHostsFile {here}/known\n"
            "  StrictHostKeyChecking yes\n"
        )
        (here / "bin").mkdir()
        wrapper = here / "bin" / "ssh"  # the real one, with this configuration instead of the user's
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {here}/config "$@"\n')
        wrapper.chmod(0o755)
        os.makedirs("/run/sshd", exist_ok=True)
        with (here / "log").open("w") as log:
            server = subprocess.Popen([sshd, "-D", "-e", "-f", here / "sshd_config"], stderr=log)
            with server, pytest.MonkeyPatch.context() as patch:
                wait_for(port)
                patch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
                try:
                    yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}{engine.removeprefix('unix://')}"
                finally:
                    server.terminate()


def forwarding(host: str) -> list[int]:
    """Process ids of ssh clients that forward to this engine."""
    wanted = host.partition("127.0.0.1:")[2].partition("/")[2]
    return [
        pid
        for pid, words in commands().items()
        if words and words[0].endswith("ssh") and any(word.endswith(wanted) for word in words)
    ]


async def test_the_core_over_ssh(ssh_host: str) -> None:
    async with DockerBackend(settings=settings_for(ssh_host)) as backend:
        await check_core(backend)
        assert len(forwarding(ssh_host)) == 1
    gone(set(forwarding(ssh_host)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK's own sockets
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_broken_connection_is_the_hosts_failure_and_is_made_again(ssh_host: str) -> None:
    async with DockerBackend(settings=settings_for(ssh_host)) as backend:
        async with backend.sandbox() as sandbox:
            running = asyncio.create_task(sandbox.exec("sleep 300", timeout=300))
            await asyncio.sleep(0.5)
            for pid in forwarding(ssh_host):
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(SandboxFault):
                await asyncio.wait_for(running, 60)
        deadline = time.monotonic() + 60
        while True:
            try:
                async with backend.sandbox() as again:
                    assert (await again.exec("echo on", timeout=60)).stdout.head == b"on\n"
                break
            except SandboxFault:
                assert time.monotonic() < deadline
    gc.collect()  # what the SDK has not closed is warned of here


def test_nothing_outlives_a_killed_owner_over_ssh(ssh_host: str, engine: str) -> None:
    killed_owner_leaves_nothing(settings_for(ssh_host), DockerEngine(engine))
    deadline = time.monotonic() + 60
    while forwarding(ssh_host) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert forwarding(ssh_host) == []


async def test_an_ssh_that_does_not_get_there(ssh_host: str) -> None:
    said = await refusal(settings_for(f"ssh://127.0.0.1:{reserved_port()}"))
    assert "Connection refused" in said
    assert forwarding("127.0.0.1:1/docker.sock") == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK's own sockets
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_machine_without_an_engine(ssh_host: str) -> None:
    host = "/".join(ssh_host.split("/")[:3])
    said = await refusal(settings_for(f"{host}/nowhere/docker.sock"))
    assert "no Docker engine at ssh://" in said
    gc.collect()


@pytest.mark.parametrize(
    "host",
    ["tcp://nohost", "unix://relative", "http://x", "what://x:1", "ssh://", "tcp://:1", "ssh://-oProxy", "x"],
)
def test_addresses_that_are_none(host: str) -> None:
    with pytest.raises((ConfigError, SetupError), match=r"sandbox\.host") as caught:
        DockerEngine(host)
    assert "\n" not in str(caught.value)


def test_addresses_and_keys_are_found_as_the_docker_command_does(tmp_path: Path) -> None:
    assert find_engine(environment={}).url == "unix:///var/run/docker.sock"
    assert find_engine("tcp://[::1]:2375", environment={}).url == "tcp://[::1]:2375"
    found = find_engine(environment={"DOCKER_HOST": "tcp://h:2375"})
    assert (found.host, found.port, found.keys) == ("h", 2375, None)
    environment = {"DOCKER_HOST": "tcp://h:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"has no ca\.pem"):
        find_engine(environment=environment)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("no key")
    found = find_engine(environment=environment)
    assert (found.keys, found.verify) == (tmp_path, True)
    with pytest.raises(ConfigError, match="cannot be used"):
        found.tls()
    assert not find_engine(environment=environment | {"DOCKER_TLS_VERIFY": ""}).verify
    assert find_engine("unix:///x", environment=environment).keys is None
