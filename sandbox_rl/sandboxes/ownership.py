"""Labels that say whose a sandbox is, and whether its owner can still come for it."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping

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


def owner_name(prefix: str) -> str:
    """Beginning of a file's name that says which process of this machine made it."""
    place = hashlib.sha256(_place().encode()).hexdigest()[:8]
    return f"{prefix}{place}-{os.getpid()}-{start_time(os.getpid())}-"


def owner_of_name_is_gone(prefix: str, name: str) -> bool:
    """Whether `name` begins as `owner_name(prefix)` of a process that was here and is not any more."""
    found = re.match(re.escape(prefix) + r"([0-9a-f]{8})-(\d+)-(\d+)-", name)
    here = owner_name(prefix).removeprefix(prefix)[:8]
    return bool(found and _place() and found[1] == here and start_time(int(found[2])) != found[3])


def _place() -> str:
    """Where process ids mean the same; "" where that cannot be read."""
    try:
        return place()
    except OSError:
        return ""
