"""The budgets of an episode."""

from __future__ import annotations

from pydantic import Field

from sandbox_rl.settings import Settings

__all__ = ["EpisodeSettings"]


class EpisodeSettings(Settings):
    """The budgets of one episode (defaults: the paper's, arXiv 2601.16206)."""

    max_turns: int = Field(100, ge=1)
    """Policy turns."""
    max_tokens: int = Field(65_536, ge=1)
    """Completion tokens, sampled and observed together."""
    turn_tokens: int = Field(8_192, ge=1)
    """Tokens that one turn may sample."""
    timeout_s: float = Field(5_400.0, gt=0)
    """Seconds from sandbox boot to the end of the last turn."""
    exec_timeout_s: float = Field(120.0, gt=0)
    """Seconds that one command may run."""
    boot_timeout_s: float = Field(60.0, gt=0)
    """Seconds within which a sandbox must be up."""
