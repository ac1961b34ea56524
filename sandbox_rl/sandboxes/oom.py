"""The kernel's own count of what it killed for its memory, of another process's cgroup."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["kill_counter", "rising"]


def kill_counter(pid: int, root: Path = Path("/sys/fs/cgroup")) -> Callable[[], bool] | None:
    """Whether the count of the cgroup of process `pid` has risen since the last call.

    None where it cannot be read: another machine's engine, or a cgroup out of sight.
    """
    try:
        rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for row in rows:
        _, controllers, path = row.split(":", 2)
        inside = path.lstrip("/")
        if "memory" in controllers.split(","):
            file = root / "memory" / inside / "memory.oom_control"
        elif not controllers:
            file = root / inside / "memory.events"
        else:
            continue
        if file.is_file():
            return rising(file)
    return None


def rising(file: Path) -> Callable[[], bool]:
    """Whether the count of kills in `file` has risen since the last call; not where it cannot be read."""
    seen = 0

    def risen() -> bool:
        nonlocal seen
        try:
            match = re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE)
        except OSError:
            return False
        before, seen = seen, int(match[1]) if match else 0
        return seen > before

    return risen
