"""Whose a sandbox or a directory is, and whether its owner can still come for it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from sandbox_rl.sandboxes.spawner.cgroups import place, start_time

LABEL = "sandbox-rl.owner"
RUN = "sandbox-rl.run"
_PLACE, _EXPIRY = "sandbox-rl.place", "sandbox-rl.expires"


def owner_labels(lifetime_s: float, run: str = "") -> dict[str, str]:
    """Labels of a sandbox that this process makes: run, place, process id and start time, expiry (Unix s)."""
    pid = os.getpid()
    return {
        LABEL: f"{pid}:{start_time(pid)}",
        RUN: run,
        _PLACE: _place(),
        _EXPIRY: str(int(time.time() + lifetime_s)),
    }


def is_orphan(labels: Mapping[str, str]) -> bool:
    """Whether the owner has provably gone: its process is not there any more, or the sandbox has expired.

    What was made on another machine, under another boot or from another process namespace has an owner
    that cannot be looked up here: then only the expiry counts.
    """
    owner = re.fullmatch(r"(\d+):(\d+)", labels.get(LABEL, ""))
    expiry = labels.get(_EXPIRY, "")
    if not owner or not expiry.isdigit():
        return False
    if time.time() > int(expiry):
        return True
    return labels.get(_PLACE) == _place() != "" and start_time(int(owner[1])) != owner[2]


class OwnedDirectory:
    """A temporary directory whose name says which process of this machine has made it.

    Making one removes those of processes that were killed and could not do it themselves.

    Args:
        prefix: how all of its kind are called.
    """

    def __init__(self, prefix: str, mode: int = 0o700) -> None:
        start = f"{prefix}{hashlib.sha256(_place().encode()).hexdigest()[:8]}-"
        for left in Path(tempfile.gettempdir()).glob(f"{start}*"):
            owner = re.match(r"(\d+)-(\d+)-", left.name.removeprefix(start))
            if owner and _place() and start_time(int(owner[1])) != owner[2]:
                shutil.rmtree(left, ignore_errors=True)
        own = os.getpid()
        self._directory = tempfile.TemporaryDirectory(prefix=f"{start}{own}-{start_time(own)}-")
        self.path = Path(self._directory.name)
        self.path.chmod(mode)

    def close(self) -> None:
        self._directory.cleanup()


def _place() -> str:
    """Where process ids mean the same; "" where that cannot be read."""
    try:
        return place()
    except OSError:
        return ""
