"""A container that is used once, for the weak backend: its own namespaces and a read-only file system.

`container_command` gives the command line that runs the driver in a new container; run as a module, this
file sets the container up from inside and then becomes the driver. Killing the container's first process
ends everything in it. The container must hold even though what runs in it isolates nothing.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_STORE = "size=3g"
_WRITABLE = ("/var/tmp", "/opt", "/run", "/usr/local/bin", "/dev/shm", "/sys/fs/cgroup")


def container_command(*driver_arguments: str) -> list[str]:
    """What to run to run the driver in a new container. The shell is its process 1."""
    unshare = (
        "unshare --user --map-root-user --mount --pid --fork --kill-child --net --ipc --uts --mount-proc"
    )
    python = [sys.executable, "-m", f"{__package__}.container", *driver_arguments]
    return [*unshare.split(), "sh", "-c", '"$@"; exit $?', "sh", *python]


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", "-n", *arguments], check=True, capture_output=True, timeout=30)


def _keep_and_cover_tmp(keep: list[Path]) -> None:
    """A tmpfs over /tmp, with what the interpreter needs from below it put back, read-only."""
    inside = {path for path in keep if path.is_relative_to("/tmp")}
    below = [path for path in inside if not any(path.is_relative_to(o) for o in inside - {path})]
    _mount("-t", "tmpfs", "-o", _STORE, "container", "/mnt")
    for number, path in enumerate(below):
        stash = Path("/mnt") / str(number)
        stash.mkdir()
        _mount("--bind", str(path), str(stash))
    _mount("-t", "tmpfs", "-o", _STORE, "container", "/tmp")
    for number, path in enumerate(below):
        path.mkdir(parents=True)
        _mount("--bind", f"/mnt/{number}", str(path))


def _prove_read_only(paths: list[Path]) -> None:
    for path in paths:
        try:
            (path / "write-probe").touch()
        except OSError:
            continue
        raise SystemExit(f"the container can write {path}: refusing to run anything in it")


def set_up() -> None:
    keep = [Path(sys.prefix), Path(sys.base_prefix), REPOSITORY]
    _mount("--make-rprivate", "/")
    _mount("-o", "remount,bind,ro", "/")
    _keep_and_cover_tmp(keep)
    _prove_read_only([*keep, Path("/"), Path("/etc"), Path("/usr/bin")])
    for path in _WRITABLE:
        if os.path.isdir(path):
            _mount("-t", "tmpfs", "-o", _STORE, "container", path)
    home = Path("/tmp/home")
    home.mkdir()
    os.environ["HOME"] = str(home)
    # Stand-ins for what a shared cgroup tree offers to whoever may write it.
    Path("/sys/fs/cgroup/memory").mkdir()
    Path("/sys/fs/cgroup/cgroup.procs").touch()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))


READY = "container ready"
"""The first line of a container that is set up: what dies afterwards was killed by a case."""

if __name__ == "__main__":
    set_up()
    from .driver import main

    print(READY, flush=True)
    main(sys.argv[1:])
