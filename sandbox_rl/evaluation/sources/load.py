"""From the settings of a suite's source to its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.evaluation.sources.champ import champ_tasks
from sandbox_rl.evaluation.sources.config import ChampSource, DocumentsSource, MmluSource, SuiteSource
from sandbox_rl.evaluation.sources.documents import document_tasks
from sandbox_rl.evaluation.sources.mmlu import mmlu_tasks
from sandbox_rl.tasks.config import DataSettings
from sandbox_rl.tasks.load import hash64, load_tasks
from sandbox_rl.types import Task

__all__ = ["load_source"]


def load_source(source: SuiteSource, *, limit: int | None, base_dir: Path, seed: int) -> Sequence[Task]:
    """All tasks of a source, or `limit` of them by a hash of their ids, the same on every machine.

    Raises:
        DataError: it cannot be read, is not installed, or holds bad rows.
    """
    if isinstance(source, ChampSource):
        return _some(champ_tasks(source), limit, seed)
    if isinstance(source, MmluSource):
        return _some(mmlu_tasks(source), limit, seed)
    if isinstance(source, DocumentsSource):
        return document_tasks(source)[:limit]  # in turn of every kind
    # Nothing is held out: what a suite names is all for evaluation.
    whole = source.model_copy(update={"held_out": None})
    settings = DataSettings(sources=(whole,), held_out=0.0, limit=limit, seed=seed)
    return load_tasks(settings, split="train", base_dir=base_dir)


def _some(tasks: list[Task], limit: int | None, seed: int) -> list[Task]:
    if limit is None or limit >= len(tasks):
        return tasks
    return sorted(tasks, key=lambda task: hash64(task.id, f"order-{seed}"))[:limit]
