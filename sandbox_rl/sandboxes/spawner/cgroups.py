"""Memory, process and CPU limits by cgroup, version 2 or 1, where this user may make groups.

One group per backend holds one group per sandbox. The backend's group is named after its owner
(boot, process id, start time), so that a later process can tell an orphan from a living one.
"""

from __future__ import annotations

import os
import time
from typing import Any

V1_CONTROLLERS = ("memory", "pids", "cpu")
PREFIX = "sandbox_rl-"
ORPHANS_TIME = 5.0  # seconds at a start for what others have left; the rest is left to the next start
TCP_BUFFERS = 32 << 20  # version 1 counts them separately, and without a bound they are everybody's
OUTSIDE = 4  # processes of the launcher that count beside the sandbox's own


def place() -> str:
    """Boot and process-id namespace: within one, a process id means one process at a time."""
    boot = read_text("/proc/sys/kernel/random/boot_id").strip().replace("-", "")[:12]
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


def owner_name(pid: int) -> str:
    """Name that no other process on any boot of this machine can claim."""
    return f"{PREFIX}{place()}-{pid}-{start_time(pid)}"


def stat_of(pid: int) -> list[str]:
    """State, parent and the further fields that the kernel tells of a process; [] if there is none."""
    try:
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> str:
    """Start of a process in clock ticks since boot, "" if there is none."""
    return "".join(stat_of(pid)[19:20])


def read_text(path: str) -> str:
    """Content of a small file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write_text(path: str, value: object) -> None:
    """Write a control file in one go."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(value))


class Cgroups:
    """The backend's groups; `roots` maps a controller (v1) or "" (v2) to the group's directory."""

    def __init__(self, owner: int, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.roots: dict[str, str] = {}
        self.refused = ""
        self.name = owner_name(owner)
        for controller, parent in parents():
            try:
                remove_orphans(parent)
                directory = f"{parent}/{self.name}-{os.getpid()}"
                os.mkdir(directory)
            except OSError as error:
                self.refused = f"{parent}: {error.strerror}"
                continue
            try:
                if not controller:
                    delegate(parent, directory)
                self.try_out(controller, directory)
                self.roots[controller] = directory
            except OSError as error:
                self.refused = f"{directory}: {error.strerror}"
                os.rmdir(directory)
            if not controller and self.roots:
                break
        self.memory = "memory" in self.roots or "" in self.roots

    def try_out(self, controller: str, directory: str) -> None:
        """Make a group with limits and remove it again: what the files promise is not enough."""
        probe = f"{directory}/probe"
        os.mkdir(probe)
        try:
            for file, value in self.settings(controller):
                write_text(f"{probe}/{file}", value)
        finally:
            os.rmdir(probe)

    def settings(self, controller: str) -> list[tuple[str, object]]:
        """Control files and values of one sandbox."""
        memory = self.limits["memory_mb"] << 20
        processes = self.limits["pids"] + OUTSIDE
        quota = int(self.limits["cpus"] * 100_000)
        return {
            "": [
                ("memory.max", memory),
                ("memory.oom.group", 0),
                ("pids.max", processes),
                ("cpu.max", f"{quota} 100000"),
            ],
            "memory": [("memory.limit_in_bytes", memory)],
            "pids": [("pids.max", processes)],
            "cpu": [("cpu.cfs_period_us", 100_000), ("cpu.cfs_quota_us", quota)],
        }[controller]

    def make(self, name: str) -> None:
        for controller, root in self.roots.items():
            directory = f"{root}/{name}"
            os.mkdir(directory)
            for file, value in self.settings(controller):
                write_text(f"{directory}/{file}", value)
            tcp = f"{directory}/memory.kmem.tcp.limit_in_bytes"
            if controller == "memory" and os.path.exists(tcp):
                write_text(tcp, TCP_BUFFERS)
            for file in ("memory.swap.max", "memory.memsw.limit_in_bytes"):  # only where swap is counted
                if controller in ("", "memory") and os.path.exists(f"{directory}/{file}"):
                    write_text(f"{directory}/{file}", 0 if "swap" in file else self.limits["memory_mb"] << 20)

    def join(self, name: str) -> None:
        for root in self.roots.values():
            write_text(f"{root}/{name}/cgroup.procs", 0)

    def members(self, name: str) -> list[int]:
        """The processes of a sandbox, after which no further one can come into being.

        Its share of the processors is lifted: what is to die needs time for that.
        """
        found = [last_members(f"{root}/{name}") for root in self.roots.values()]
        return sorted(set().union(*found))

    def remove(self, name: str) -> bool:
        """Remove a sandbox's groups; False while something still lives in one."""
        gone = [remove_group(f"{root}/{name}") for root in self.roots.values()]
        return all(gone)

    def close(self) -> None:
        for root in self.roots.values():
            deadline = time.monotonic() + 5
            while not remove_group(root) and time.monotonic() < deadline:
                time.sleep(0.005)

    def kills(self, name: str) -> int | None:
        """How many of its processes the kernel has killed for their memory; None where nobody counts."""
        try:
            lines = read_text(self.events().format(group=name)).splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)

    def events(self) -> str:
        """Path, with {group}, of the file that counts out-of-memory kills; "" where there is none."""
        if "" in self.roots:
            return self.roots[""] + "/{group}/memory.events"
        return self.roots["memory"] + "/{group}/memory.oom_control" if "memory" in self.roots else ""


def remove_group(directory: str) -> bool:
    """rmdir; True if it is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def parents() -> list[tuple[str, str]]:
    """(controller, directory to make groups in), the best first. Own limits keep holding below."""
    own = [line.split(":", 2) for line in read_text("/proc/self/cgroup").splitlines()]
    found = []
    for mount_line in read_text("/proc/self/mounts").splitlines():
        _, point, kind, options = mount_line.split()[:4]
        for _, controllers, path in own:
            below = point + path.rstrip("/")
            if kind == "cgroup2" and not controllers:
                # Processes may only be in leaves, so a sibling of the own group is the usual place.
                found += [("", below)] + ([("", os.path.dirname(below))] if path != "/" else [])
            elif kind == "cgroup":
                shared = set(controllers.split(",")) & set(options.split(",")) & set(V1_CONTROLLERS)
                found += [(controller, below) for controller in sorted(shared)]
    return sorted(found, key=lambda item: item[0])


def delegate(parent: str, directory: str) -> None:
    """Hand the controllers down (version 2). Raises OSError if memory and pids cannot be."""
    for place in (parent, directory):
        enabled = read_text(f"{place}/cgroup.subtree_control").split()
        for controller in ("memory", "pids", "cpu"):
            if controller not in enabled:
                write_text(f"{place}/cgroup.subtree_control", "+" + controller)


def remove_orphans(parent: str) -> None:
    """Remove groups whose owner and spawner are provably gone; those of other places are left alone.

    A spawner whose owner has gone is clearing up itself. One that was killed takes its sandboxes with it,
    except what was just being made, and what is slow to die.
    """
    here = place()
    orphans = []
    for entry in os.listdir(parent):
        parts = entry.split("-")
        if not entry.startswith(PREFIX) or len(parts) != 5 or not (parts[2] + parts[4]).isdigit():
            continue
        _, its_place, pid, started, spawner = parts
        owned = start_time(int(pid)) == started and start_time(int(spawner))
        if its_place == here and not owned and not is_spawner(int(spawner)):
            orphans.append(f"{parent}/{entry}")
    deadline = time.monotonic() + ORPHANS_TIME
    while orphans and time.monotonic() < deadline:
        orphans = [directory for directory in orphans if not clear_groups(directory)]
        time.sleep(0.005)


def is_spawner(pid: int) -> bool:
    """Whether a living process is one of these: its name alone may belong to a newcomer by now."""
    try:
        return "/proc/self/fd/" in read_text(f"/proc/{pid}/cmdline")
    except OSError:
        return False


def clear_groups(directory: str) -> bool:
    """Kill what is left in the groups below `directory` and remove them all; False while some are left."""
    try:
        children = [f"{directory}/{name}" for name in os.listdir(directory)]
    except FileNotFoundError:
        return True
    for child in filter(os.path.isdir, children):
        if not remove_group(child):
            for pid in last_members(child):
                kill_process(pid)
    return remove_group(directory)


def last_members(directory: str) -> set[int]:
    """The processes of a group, which may start no more and use the processors as they need to."""
    for file, value in (("pids.max", 0), ("cpu.cfs_quota_us", -1), ("cpu.max", "max")):
        try:
            if os.path.exists(f"{directory}/{file}"):
                write_text(f"{directory}/{file}", value)
        except OSError:
            pass  # it has just been removed
    try:
        return {int(pid) for pid in read_text(f"{directory}/cgroup.procs").split()}
    except OSError:
        return set()


def kill_process(pid: int) -> bool:
    """Kill a process; False if there is none."""
    try:
        os.kill(pid, 9)
    except OSError:
        return False
    return True
