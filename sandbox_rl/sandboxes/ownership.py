"""Labels that say whose a sandbox is, and whether its owner can still come for it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["LABEL", "RUN", "is_orphan", "owner_labels"]

LABEL = "sandbox-rl.owner"
RUN = "sandbox-rl.run"
_PLACE, _EXPIRY = "sandbox-rl.place", "sandbox-rl.expires"


def owner_labels(lifetime_s: float, run: str = "") -> dict[str, str]:
    """Labels of a sandbox that this process makes: run, place, process id and start time, expiry (Unix s)."""
    pid = os.getpid()
    return {
        LABEL: f"{pid}:{_start_time(pid)}",
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
    return labels.get(_PLACE) == _place() != "" and _start_time(int(owner[1])) != owner[2]


def _place() -> str:
    """Where process ids mean the same: boot id and process namespace; "" where they cannot be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """In clock ticks after boot; "0" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"
