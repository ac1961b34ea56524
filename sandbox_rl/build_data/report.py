"""What a build made and what it left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sandbox_rl.tasks.report import BadRow

__all__ = ["BuildReport"]


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built. Sizes in characters; `by_field` counts dropped rows by the field at fault."""

    rows: int
    train: int
    held_out: int
    contexts: int
    dropped_rows: int
    dropped: tuple[BadRow, ...]
    by_field: Mapping[str, int]
    files: int
    distractors: int
    examples: int
    split_documents: int
    mean_prompt_chars: float
    mean_files_chars: float
    max_files_chars: int
