"""From the settings of a suite's source to its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.tasks.config import DataSettings, TaskSource
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.types import Task

__all__ = ["load_source"]


def load_source(source: TaskSource, *, limit: int | None, base_dir: Path, seed: int) -> Sequence[Task]:
    """All tasks of a source, or `limit` of them by a hash of their ids, the same on every machine.

    Raises:
        DataError: it cannot be read, is not installed, or holds bad rows.
    """
    # Nothing is held out: what a suite names is all for evaluation.
    whole = source.model_copy(update={"held_out": None})
    settings = DataSettings(
        sources=(whole,), held_out=0.0, limit=limit, seed=seed, shuffle=not source.in_order
    )
    return load_tasks(settings, split="train", base_dir=base_dir)
