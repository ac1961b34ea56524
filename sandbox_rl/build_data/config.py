"""Settings of `build_data`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sandbox_rl.registry import Registry
from sandbox_rl.settings import ByType, Settings
from sandbox_rl.tasks.config import HubSource, TableSource


class BuildSettings(Settings):
    """Which rows become context tasks, and how."""

    source: Annotated[
        TableSource | HubSource, ByType(Registry("source", {"table": TableSource, "hub": HubSource}))
    ]
    """Rows with a question (`columns.prompt`), an answer and a context (`columns.context`)."""
    output_dir: str
    """Gets train.jsonl, held_out.jsonl and report.json; relative to the settings file."""
    held_out: float = Field(default=0.1, ge=0, le=1)
    """Share of contexts, not rows, kept from training."""
    seed: int = 0
    """Choice and order of distractor files."""
    max_file_chars: int = Field(default=20_000, ge=200)
    """A longer document is split at section or paragraph borders."""
    distractors: int = Field(default=3, ge=0, le=64)
    """Files from other rows, added when a context is a single file."""
    examples: int = Field(default=2, ge=0, le=16)
    """Earlier questions of the same context that become worked examples in the prompt."""
    max_prompt_chars: int = Field(default=20_000, ge=1)
    """A longer question makes the row bad."""
