"""Settings of the sources that only suites have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sandbox_rl.registry import Registry
from sandbox_rl.settings import ByType
from sandbox_rl.tasks.config import SOURCES, TaskSource
from sandbox_rl.types import Task

__all__ = ["SUITE_SOURCES", "ChampSource", "DocumentsSource", "MmluSource", "SuiteSource"]


class ChampSource(TaskSource):
    """Competition mathematics from the package `champ-dataset`, where the answer is one number."""

    type: Literal["champ"] = "champ"
    domain: str = "math"
    """Prompt set."""
    scorer: str = "math"
    """Scorer."""

    def tasks(self) -> Iterable[Task]:
        """See `champ_tasks`."""
        from sandbox_rl.evaluation.sources.champ import champ_tasks

        return champ_tasks(self)


class MmluSource(TaskSource):
    """The chain-of-thought exemplars of MMLU from the files of the package `lm-eval`."""

    type: Literal["mmlu_cot"] = "mmlu_cot"
    domain: str = "general"
    """Prompt set."""
    scorer: str = "choice"
    """Scorer."""

    def tasks(self) -> Iterable[Task]:
        """See `mmlu_tasks`."""
        from sandbox_rl.evaluation.sources.mmlu import mmlu_tasks

        return mmlu_tasks(self)


class DocumentsSource(TaskSource):
    """Questions about long texts that are on every machine; answers follow by rule from the texts."""

    in_order: ClassVar[bool] = True  # of every kind in turn
    type: Literal["documents"] = "documents"
    package: str = "pydoc_data"
    """Importable package whose texts are used; `pydoc_data` stands for the Python language reference in the
    standard library. Of others its .txt, .md, .rst and .py files are taken."""
    size: int = Field(60, ge=1)
    """Questions."""
    files: int = Field(12, ge=2, le=200)
    """Files of each question."""
    min_chars: int = Field(3_000, ge=500)
    """Shorter texts are not used."""
    seed: int = 0
    """Of the choice of files and questions."""
    domain: str = "long_context"
    """Prompt set."""

    def tasks(self) -> Iterable[Task]:
        """See `document_tasks`."""
        from sandbox_rl.evaluation.sources.documents import document_tasks

        return document_tasks(self)


SUITE_SOURCES: Registry[type[TaskSource]] = SOURCES.with_more(
    {"champ": ChampSource, "mmlu_cot": MmluSource, "documents": DocumentsSource}
)
"""Where the tasks of a suite can come from."""

SuiteSource = Annotated[TaskSource, ByType(SUITE_SOURCES)]
"""Settings of any of them, told apart by `type`."""
