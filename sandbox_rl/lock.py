"""One process at a time writes the directory of a run or of an evaluation.

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
def alone(directory: Path, what: str = "--resume") -> Iterator[None]:
    """Keep other processes away while open.

    Args:
        what: the option that names it, for the message.

    Raises:
        ConfigError: another one is at work on it.
    """
    file = os.open(directory / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise _at_work(directory, what) from error
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}
        os.truncate(file, 0)
        os.pwrite(file, json.dumps(owner).encode() + b"\n", 0)
        yield
    finally:
        os.close(file)


def check_alone(directory: Path, what: str = "--resume") -> None:
    """Whether nobody is at work on it now; touches nothing. Not for a process that holds the lock itself.

    Args:
        what: the option or command that asks, for the message.

    Raises:
        ConfigError: somebody is.
    """
    if is_owned(directory):
        raise _at_work(directory, what)


def is_owned(directory: Path) -> bool | None:
    """Whether a process holds the record lock, which goes with it however it ends; takes nothing.

    Returns:
        None where nobody can tell: there is no such file, or the file system has no such locks.
    """
    try:
        file = os.open(directory / FILE, os.O_RDONLY | os.O_CLOEXEC)
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


def _at_work(directory: Path, what: str) -> ConfigError:
    who = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads((directory / FILE).read_bytes())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        who = f"process {owner['pid']} on {owner['host']}, since {since},"
    return ConfigError(
        f"{what}: {who} is at work on {directory}, expected one that nobody works on; wait for it, or end it"
    )
