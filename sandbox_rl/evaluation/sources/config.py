"""Settings of the sources that only suites have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sandbox_rl.settings import Settings
from sandbox_rl.tasks.config import HubSource, ReasoningGymSource, TableSource

__all__ = ["ChampSource", "DocumentsSource", "MmluSource", "SuiteSource"]


class ChampSource(Settings):
    """Competition mathematics from the package `champ-dataset`, where the answer is one number."""

    type: Literal["champ"]
    domain: str = "math"
    """Prompt set."""
    scorer: str = "math"
    """Scorer."""


class MmluSource(Settings):
    """The chain-of-thought exemplars of MMLU from the files of the package `lm-eval`."""

    type: Literal["mmlu_cot"]
    domain: str = "general"
    """Prompt set."""
    scorer: str = "choice"
    """Scorer."""


class DocumentsSource(Settings):
    """Questions about long texts that are on every machine; answers follow by rule from the texts."""

    type: Literal["documents"]
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


SuiteSource = Annotated[
    ReasoningGymSource | TableSource | HubSource | ChampSource | MmluSource | DocumentsSource,
    Field(discriminator="type"),
]
