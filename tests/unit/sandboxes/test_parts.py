"""Names, filter, bundles, layout, capacity: the parts that need no sandbox."""

import ast
import os
import struct
from pathlib import Path

import pytest

from sandbox_rl.errors import ConfigError, SandboxFileError, SetupError
from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.bundle import agent_source, spawner_source
from sandbox_rl.sandboxes.bwrap import find_bubblewrap, make_layout
from sandbox_rl.sandboxes.cases.model import Outcome
from sandbox_rl.sandboxes.names import check_files, checked_path
from sandbox_rl.sandboxes.pool import HostCapacity
from sandbox_rl.sandboxes.seccomp import DENIED, build_filter, numbers_of
from sandbox_rl.sandboxes.spawner.cgroups import owner_name, remove_orphans

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, EPERM, ENOMEM, ENOSYS, EAFNOSUPPORT = 0x7FFF0000, 0x50001, 0x5000C, 0x50026, 0x50061


def decide(program: bytes, number: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """What the kernel would answer: an interpreter of the filter."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(args + (0,) * (6 - len(args))))
    steps = list(struct.iter_unpack("<HBBI", program))
    at = value = 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        elif code == 0x06:
            return k
        else:
            truth = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]
            at += yes if truth else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_decides_as_it_says(machine: str) -> None:
    program, arch = build_filter(machine), AUDIT[machine]
    column = list(AUDIT).index(machine)
    numbers = numbers_of(machine, "sandbox")
    assert {"mount", "ptrace", "bpf"} <= numbers.keys() & set(DENIED)
    for name in numbers.keys() & set(DENIED):
        assert decide(program, numbers[name], arch) == EPERM, name
    clone, ioctl, socket = ((56, 16, 41), (220, 29, 198))[column]
    assert decide(program, 435, arch) == ENOSYS
    assert decide(program, clone, arch, (0x10000000,)) == EPERM
    assert decide(program, clone, arch, (0x01200011,)) == ALLOW
    assert decide(program, ioctl, arch, (0, 0x5412)) == EPERM
    assert decide(program, ioctl, arch, (0, 0x5401)) == ALLOW
    assert decide(program, socket, arch, (2,)) == ALLOW
    assert decide(program, socket, arch, (40,)) == EAFNOSUPPORT
    mmap, memfd = ((9, 319), (222, 279))[column]
    assert decide(program, mmap, arch, (0, 4096, 3, 0x40022)) == ENOMEM
    assert decide(program, mmap, arch, (0, 4096, 3, 0x22)) == ALLOW
    assert decide(program, memfd, arch, (0, 5)) == ENOMEM
    assert decide(program, memfd, arch, (0, 1)) == ALLOW
    assert decide(program, 1 << 20, arch) == ALLOW
    assert decide(program, 0, 0x40000003) == EPERM


def test_filter_refuses_the_x32_abi() -> None:
    assert decide(build_filter("x86_64"), 0x40000000, AUDIT["x86_64"]) == ENOSYS


def test_unknown_machine_is_reported() -> None:
    with pytest.raises(SetupError, match=r"riscv64.*docker"):
        build_filter("riscv64")


@pytest.mark.parametrize("source", [agent_source(), spawner_source()])
def test_bundles_need_the_standard_library_only(source: str) -> None:
    tree = ast.parse(source, feature_version=(3, 9))
    modules = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not any((module or "").startswith("sandbox_rl") for module in modules)
    compile(source, "bundle", "exec")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "a/../b",
        "a//b",
        "a/",
        "x\0y",
        "n" * 256,
        "é" * 128,
        "\ud800",
        "a/" * 2100 + "b",
    ],
)
def test_bad_file_names_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        check_files({name: b""}, SandboxLimits())


@pytest.mark.parametrize("name", ["a", "a b", "-rf", "é😀", "new\nline", "a/b/c", "n" * 255, "..a"])
def test_good_file_names(name: str) -> None:
    check_files({name: b""}, SandboxLimits())


def test_files_that_contradict_each_other_or_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"'a/b' is also the directory"):
        check_files({"a/b": b"", "a/b/c": b""}, SandboxLimits())
    with pytest.raises(ValueError, match="disk_mb"):
        check_files({"a": bytes((1 << 20) + 1)}, SandboxLimits(disk_mb=1))
    with pytest.raises(ValueError, match="inodes"):
        check_files({str(i): b"" for i in range(11)}, SandboxLimits(inodes=10))


@pytest.mark.parametrize("path", ["", "a", "~/x", "/a\0b", "/" + "n" * 256, "/\ud800", "/n" * 2100])
def test_bad_paths(path: str) -> None:
    with pytest.raises(SandboxFileError):
        checked_path(path)


def test_missing_bubblewrap_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no-bwrap.*apt-get install bubblewrap"):
        find_bubblewrap(tmp_path / "no-bwrap")


def test_old_bubblewrap_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    old.chmod(0o755)
    with pytest.raises(SetupError, match=r"0\.8 or later.*version 0\.4\.1"):
        find_bubblewrap(old)


@pytest.mark.parametrize("inside", ["/", "/usr", "etc", "/a/../usr", "/testbed/"])
def test_places_of_the_sandbox_cannot_be_replaced(inside: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="read_only"):
        make_layout(python_env=None, read_only={tmp_path: inside}, environment={})


def test_a_path_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-here"):
        make_layout(
            python_env=None,
            read_only={tmp_path / "nothing-here": "/opt/x"},
            environment={},
        )
    with pytest.raises(ConfigError, match="python_env"):
        make_layout(python_env=tmp_path, read_only={}, environment={})


def host(
    tmp_path: Path, *, free_kb: int = 1 << 24, processes: int = 100, pid_max: int = 4_000_000
) -> HostCapacity:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {free_kb} kB\n")
    (tmp_path / "loadavg").write_text(f"0.00 0.01 0.05 1/{processes} 77\n")
    (tmp_path / "sys/kernel/pid_max").write_text(f"{pid_max}\n")
    (tmp_path / "sys/kernel/threads-max").write_text("9000000\n")
    return HostCapacity(SandboxLimits(), 1024, proc=tmp_path, cgroup=tmp_path / "cgroup")


def test_capacity(tmp_path: Path) -> None:
    assert host(tmp_path / "a").lacking() == ""
    assert "MiB of memory" in host(tmp_path / "b", free_kb=1024).lacking()
    assert "processes run" in host(tmp_path / "c", processes=900, pid_max=1000).lacking()


@pytest.mark.parametrize(
    ("limit", "usage", "cached"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_containers_own_limit_counts_where_it_is_less(
    tmp_path: Path, limit: str, usage: str, cached: str
) -> None:
    capacity = host(tmp_path)
    assert capacity.free_mb() == (1 << 14) - 1024
    (tmp_path / "cgroup" / limit).parent.mkdir(parents=True)
    for name, text in ((limit, f"{4 << 30}\n"), (usage, f"{3 << 30}\n")):
        (tmp_path / "cgroup" / name).write_text(text)
    assert capacity.free_mb() == 0
    assert "1024 MiB of memory are free" in capacity.lacking()
    (tmp_path / "cgroup" / limit).parent.joinpath("memory.stat").write_text(f"anon 1\n{cached} {2 << 30}\n")
    assert capacity.free_mb() == 2048
    (tmp_path / "cgroup" / limit).write_text("max\n")
    assert capacity.free_mb() == (1 << 14) - 1024


def test_only_groups_of_the_provably_dead_are_removed(tmp_path: Path) -> None:
    me, gone = os.getpid(), 1 << 22  # above every process id
    kept = {
        f"{owner_name(me)}-{me}",
        f"sandbox_rl-elsewhere.1-{gone}-5-{gone}",
        "sandbox_rl-of-somebody",
        "other",
    }
    reused = owner_name(me).rpartition("-")[0] + f"-1-{me}"  # our process id, started at another time
    dead = {f"{owner_name(me).rpartition('-')[0].rpartition('-')[0]}-{gone}-5-{gone}", reused}
    for name in kept | dead | {f"{owner_name(me)}-{gone}"}:
        (tmp_path / name / "child").mkdir(parents=True)
    remove_orphans(str(tmp_path))
    assert set(os.listdir(tmp_path)) == kept
    assert all((tmp_path / name / "child").exists() for name in kept)


def test_a_known_limit_excuses_the_claim_of_its_case_and_nothing_else() -> None:
    known = ("RES-07",)
    assert Outcome("RES-07", "BUSY 9", ()).excused(known)
    assert not Outcome("RES-08", "BUSY 9", ()).excused(known)
    assert not Outcome("RES-07", "BUSY 9", ("a canary of the host came out",)).excused(known)
    assert not Outcome("RES-07", "", ("the next exec gave timeout",)).excused(known)
