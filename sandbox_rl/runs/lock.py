"""One process at a time writes a run's directory.

The lock is a record lock (fcntl(2)) on the file `lock`: it goes with its process, however that ends, is not
inherited by what the process has forked, and holds between the machines of a network file system too.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox_rl.errors import ConfigError

FILE = "lock"
_FLOCK = "hhqqi4x"
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keep other processes away while open.

    Raises:
        ConfigError: another one is at work on it.
    """
    file = os.open(run / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise _at_work(run, "--resume") from error
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}
        os.truncate(file, 0)
        os.pwrite(file, json.dumps(owner).encode() + b"\n", 0)
        yield
    finally:
        os.close(file)


def check_alone(run: Path, what: str = "--resume") -> None:
    """Whether nobody is at work on it now; touches nothing. Not for a process that holds the lock itself.

    Args:
        what: the option or command that asks, for the message.

    Raises:
        ConfigError: somebody is.
    """
    if is_owned(run):
        raise _at_work(run, what)


def is_owned(run: Path) -> bool | None:
    """Whether a process holds the run's record lock, which goes with it however it ends; takes nothing.

    Returns:
        None where nobody can tell: the run has no such file, or the file system no such locks.
    """
    try:
        file = os.open(run / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))[0]
        return bool(kind != fcntl.F_UNLCK)
    except OSError:
        return None
    finally:
        os.close(file)


def _at_work(run: Path, what: str) -> ConfigError:
    who = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads((run / FILE).read_bytes())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        who = f"process {owner['pid']} on {owner['host']}, since {since},"
    return ConfigError(
        f"{what}: {who} is at work on {run}, expected one that no process trains; wait for it, or end it"
    )
