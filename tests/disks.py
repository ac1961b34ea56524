"""File systems that are full soon."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = "small-disk"
"""What is mounted there, by its name: who looks for what tests leave behind need not wonder about it."""


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of `size`, as `mount` writes it, at a new directory while open."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", SOURCE, str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs root to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
