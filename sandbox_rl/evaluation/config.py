"""Settings of the parts of a suite."""

from __future__ import annotations

from pydantic import Field

from sandbox_rl.evaluation.sources.config import SuiteSource
from sandbox_rl.settings import Settings

__all__ = ["PartSettings"]


class PartSettings(Settings):
    """One line of the results."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """What the results call it."""
    source: SuiteSource
    """Where its tasks come from; all of them are evaluated, nothing is held out."""
    tasks: int | None = Field(None, ge=1)
    """At most so many of them."""
    samples: int = Field(1, ge=1)
    """Episodes per task."""
    required: bool = True
    """False: where its source cannot be had, the part is left out and the results say so."""
