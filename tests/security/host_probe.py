"""Counts what a sandbox can leave behind on the host, by kind.

Nine kinds: processes, threads, descriptors, mounts, cgroups, namespaces, directories of temporary
files, containers, volumes. The last two are counted only where a container engine is at hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

KINDS = ("processes", "threads", "descriptors", "mounts", "cgroups", "namespaces", "directories")


def _own_tree() -> set[int]:
    """This process and its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    tree = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def _namespaces(tree: set[int]) -> set[str]:
    found = set()
    for pid in tree:
        for kind in ("mnt", "pid", "net", "user", "ipc", "uts"):
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                continue
    return found


def _cgroups(tree: set[int]) -> Iterator[str]:
    """Groups of sandboxes, except those whose owner is alive and none of ours.

    A backend's group is named `sandbox_rl-<boot>-<owner pid>-…`.
    """
    for directory, below, _ in os.walk("/sys/fs/cgroup"):
        for name in list(below):
            if name.startswith("sandbox_rl"):
                below.remove(name)
                owner = name.split("-")[2]
                if int(owner) in tree or not os.path.exists(f"/proc/{owner}"):
                    yield from _with_all_below(os.path.join(directory, name))


def _with_all_below(directory: str) -> Iterator[str]:
    yield directory
    for parent, below, _ in os.walk(directory):
        yield from (os.path.join(parent, name) for name in below)


def _engine_lines(*arguments: str) -> list[str]:
    if not os.path.exists("/var/run/docker.sock") or shutil.which("docker") is None:
        return []
    command = ["docker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.split()


def probe() -> dict[str, set[str]]:
    """Everything there is now, by kind, under names that tell it apart."""
    tree = _own_tree()
    names = os.listdir(tempfile.gettempdir()) + [f"run/{n}" for n in os.listdir("/run")]
    return {
        "processes": {str(pid) for pid in tree},
        "threads": {f"{pid}/{t}" for pid in tree for t in _listed(f"/proc/{pid}/task")},
        "descriptors": {f"{os.getpid()}/{fd}" for fd in _open_descriptors()},
        "mounts": {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "cgroups": set(_cgroups(tree)),
        "namespaces": _namespaces(tree),
        "directories": {name for name in names if "sandbox" in name or "sbx" in name or "bwrap" in name},
        "containers": set(_engine_lines("ps", "-aq")),
        "volumes": set(_engine_lines("volume", "ls", "-q")),
    }


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _open_descriptors() -> list[str]:
    return [f for f in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{f}") or _is_open(f)]


def _is_open(descriptor: str) -> bool:
    try:
        return bool(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return False  # it was the listing's own


def leaked(before: dict[str, set[str]], *, within: float = 5.0) -> dict[str, set[str]]:
    """What is there now and was not `before`, after waiting up to `within` seconds for it to go."""
    deadline = time.monotonic() + within
    while True:
        now = probe()
        more = {kind: now[kind] - before[kind] for kind in before if _grew(kind, before[kind], now[kind])}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.1)


def _grew(kind: str, before: set[str], now: set[str]) -> bool:
    """Pools of threads and reused numbers change names, so these are judged by their count."""
    if kind in ("threads", "descriptors", "processes", "namespaces"):
        return len(now) > len(before)
    return bool(now - before)


def resident_mb() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
