"""Whether somebody is at work on a run, and what it says that it is doing."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Any

from sandbox_rl.view.lines import json_file

__all__ = ["is_owned", "status_of"]

LOCK, STATUS = "lock", "status.json"
_FLOCK = "hhqqi4x"
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""


def is_owned(run: Path) -> bool | None:
    """Whether a process holds the run's record lock, which goes with it however it ends; takes nothing.

    Returns:
        None where nobody can tell: the run has no such file, or the file system no such locks.
    """
    try:
        file = os.open(run / LOCK, os.O_RDONLY | os.O_CLOEXEC)
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


def status_of(run: Path) -> dict[str, Any]:
    """What a run that goes on has written last; empty where it writes nothing."""
    return json_file(run / STATUS)
