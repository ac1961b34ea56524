"""What this process may compute with."""

from __future__ import annotations

import os
from pathlib import Path

PROCESSORS = Path("/sys/devices/system/cpu")


def cores() -> int:
    """Physical ones that this process may use: two threads of one core share what computes, and count as one,
    as they do for torch that is not told anything."""
    together = set()
    for cpu in os.sched_getaffinity(0):
        try:
            together.add((PROCESSORS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            together.add(str(cpu))
    return len(together)
