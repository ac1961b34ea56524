"""`attempts.jsonl`: when a run was started and resumed, and from which step.

An episode that was sampled after the last checkpoint is sampled again by a resumed run, with the same seeds;
its id then names the attempt as well. A line of `metrics.jsonl` whose step is above the `step` of a later
attempt was replaced by that attempt.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

__all__ = ["begin_attempt"]

FILE = "attempts.jsonl"


def begin_attempt(run: Path, *, step: int) -> int:
    """Note that a process starts to train from `step`; returns how many did before, 0 in a new run."""
    path = run / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    number = len(lines)
    line = {"attempt": number, "step": step, "time": round(time.time(), 3)}
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return number
