"""Counts what a sandbox can leave behind on the host, by kind.

Nine kinds: processes, threads, descriptors, mounts, cgroups, namespaces, directories of temporary
files, containers, volumes. The last two are counted only where the tests have started an engine;
then its processes and its containers' count as well, and so do their control groups.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sandbox_rl.sandboxes.spawner.main import SPARES

from ..contract.backends import ENGINE_VARIABLE
from ..disks import SOURCE
from ..processes import tree_of
from ..ray_cluster import of_clusters

_ENGINES = ("sandbox-rl-docker-", "sandbox-rl-ssh", "sandbox-rl-tls")
"""Beginnings of the names of what the test set-up makes for engines, this run's and others'."""

_KEPT = 16
"""Threads and connections to an engine that are kept for the next calls: as many as one makes at once.
A leak shows all the same, by what is left of many lives."""


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


def _engine() -> str:
    """Address of the tests' own engine, "" while there is none."""
    return os.environ.get(ENGINE_VARIABLE, "")


def _engine_directory() -> str:
    return str(Path(urlsplit(_engine()).path).parent) if _engine() else ""


def _engine_lines(*arguments: str) -> list[str]:
    if not _engine():
        return []
    command = ["docker", "-H", _engine(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split()


def _engine_tree() -> tuple[set[int], set[str]]:
    """(processes of the engine's containers with their keepers, containers of other engines here).

    Each container has a keeper process ("shim") with the engine's directory and its id as arguments.
    """
    ours, foreign = set(), set()
    for entry in os.listdir("/proc") if _engine() else ():
        words = _words(entry)
        if words and "containerd-shim" in words[0] and "-id" in words:
            if any(word.startswith(_engine_directory()) for word in words):
                ours.add(int(entry))
            else:
                foreign.add(words[words.index("-id") + 1])
    return {pid for top in ours for pid in tree_of(top)}, foreign


def _words(entry: str) -> list[str]:
    """Command line of a process."""
    try:
        return Path(f"/proc/{entry}/cmdline").read_text().split("\0") if entry.isdigit() else []
    except (OSError, UnicodeDecodeError):
        return []


def _container_groups(foreign: set[str]) -> Iterator[str]:
    """Control groups of containers, living or left over, except those of other engines."""
    for directory, below, _ in os.walk("/sys/fs/cgroup") if _engine() else ():
        if os.path.basename(directory) == "docker":
            yield from (os.path.join(directory, name) for name in below if name not in foreign)
            below.clear()


def _settled_tree() -> set[int]:
    """This process and its descendants, once every spawner has as many spare sandboxes as it keeps.

    A Ray cluster of the tests does not count.

    A spawner's child is a launcher, which becomes bubblewrap, which has a first process, and that is
    bubblewrap too until the sandbox is wanted. More or fewer are on their way (or out), and counts would
    differ from one look to the next.
    """
    deadline = time.monotonic() + 60
    while True:
        tree = tree_of(os.getpid()) - of_clusters()
        words = {pid: (_words(str(pid)) or [""]) for pid in tree}
        parents = {pid: _parent(pid) for pid in tree}
        spawners = {pid for pid in tree if any(word.startswith("/proc/self/fd/") for word in words[pid])}
        launching = {pid for pid in spawners if parents[pid] in spawners}
        outer = {pid: parents[pid] for pid in tree if words[pid][0] == "bwrap" and parents[pid] in spawners}
        spare = [outer[parents[pid]] for pid in tree if words[pid][0] == "bwrap" and parents[pid] in outer]
        complete = set(outer) <= set(parents.values())
        full = all(spare.count(spawner) == SPARES for spawner in spawners)
        if (not launching and complete and full) or time.monotonic() > deadline:
            return tree
        time.sleep(0.02)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def probe() -> dict[str, set[str]]:
    """Everything there is now, by kind, under names that distinguish it."""
    tree = _settled_tree()
    engine, foreign = _engine_tree()
    names = os.listdir(tempfile.gettempdir()) + [f"run/{n}" for n in os.listdir("/run")]
    return {
        "processes": {f"{pid} of {_parent(pid)}: {_words(str(pid))[:1]}" for pid in tree | engine},
        "threads": {f"{pid}/{t}" for pid in tree for t in _listed(f"/proc/{pid}/task")},
        "descriptors": {f"{os.getpid()}/{fd}" for fd in _open_descriptors()},
        "mounts": _mounts(),
        "cgroups": {*_cgroups(tree), *_container_groups(foreign)},
        "namespaces": _namespaces(tree | engine),
        "directories": {name for name in names if _is_sandboxes(name)},
        "containers": set(_engine_lines("ps", "-aq")),
        "volumes": set(_engine_lines("volume", "ls", "-q")),
    }


def _is_sandboxes(name: str) -> bool:
    """Whether a sandbox may have made it; what test engines need is not among those."""
    return ("sandbox" in name or "bwrap" in name) and not name.startswith(_ENGINES)


def _mounts() -> set[str]:
    """Where something is mounted, but for small disks of other tests and the engines of other runs here."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = {line.split()[4] for line in lines if line.partition(" - ")[2].split()[1] != SOURCE}
    ours = _engine_directory() or "no engine"
    return {place for place in places if ours in place or f"/{_ENGINES[0]}" not in place}


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


def leaked(before: dict[str, set[str]], *, within: float = 100.0) -> dict[str, set[str]]:
    """What is there now and was not `before`, after waiting up to `within` seconds for it to go.

    A container that its engine could not remove at first is removed within a minute.
    """
    deadline = time.monotonic() + within
    while True:
        now = probe()
        more = {kind: now[kind] - before[kind] for kind in before if _grew(kind, before[kind], now[kind])}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.1)


def _grew(kind: str, before: set[str], now: set[str]) -> bool:
    """Pools of threads, reused numbers and spare sandboxes change names: these are judged by their count."""
    if kind in ("descriptors", "threads") and _engine():
        return len(now) > len(before) + _KEPT
    if kind in ("threads", "descriptors", "processes", "namespaces", "cgroups"):
        return len(now) > len(before)
    return bool(now - before)


def resident_mb() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
