"""The probe for leaks sees each kind of leak that can be made without an engine."""

import os
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from ..contract.backends import ENGINE_VARIABLE
from ..docker_engine import IMAGE
from .host_probe import leaked, probe


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)


def test_nothing_is_no_leak() -> None:
    assert leaked(probe(), within=0) == {}


def test_processes_and_namespaces() -> None:
    before = probe()
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert leaked(before, within=0).keys() >= {"processes"}
    finally:
        child.kill()
        child.wait()
    assert leaked(before) == {}


def test_threads() -> None:
    before, stop = probe(), threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert leaked(before, within=0).keys() == {"threads"}
    finally:
        stop.set()
        thread.join()


def test_descriptors() -> None:
    before = probe()
    reader, writer = os.pipe()
    try:
        assert leaked(before, within=0).keys() == {"descriptors"}
    finally:
        os.close(reader)
        os.close(writer)


def test_directories() -> None:
    before = probe()
    made = Path(tempfile.mkdtemp(prefix="sandbox_rl-leak-"))
    try:
        assert leaked(before, within=0) == {"directories": {made.name}}
    finally:
        made.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount and make cgroups")
def test_mounts_and_cgroups(tmp_path: Path) -> None:
    before = probe()
    group = next((p for p in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if p.is_dir()), None)
    subprocess.run(["mount", "-t", "tmpfs", "leak", str(tmp_path)], check=True)
    try:
        assert leaked(before, within=0) == {"mounts": {str(tmp_path)}}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    if group is not None and os.access(group, os.W_OK):
        made = group / f"sandbox_rl-leak-{os.getpid()}-0"
        made.mkdir()
        try:
            assert str(made) in leaked(before, within=0)["cgroups"]
        finally:
            made.rmdir()


def test_containers_and_volumes(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, engine)

    def docker(*arguments: str) -> str:
        command = ["docker", "-H", engine, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    before = probe()
    volume = docker("volume", "create")
    shown = ("-v", "/usr:/usr:ro", "-v", f"{volume}:/kept")
    container = docker("run", "-d", "--net", "none", *shown, IMAGE, "sleep", "60")
    try:
        seen = leaked(before, within=0)
        assert seen["volumes"] == {volume}
        assert container in {Path(group).name for group in seen["cgroups"]}
        assert seen.keys() >= {"containers", "processes", "mounts", "namespaces"}
    finally:
        docker("rm", "-f", container)
        docker("volume", "rm", volume)
    assert leaked(before) == {}
