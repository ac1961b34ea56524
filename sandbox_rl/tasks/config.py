"""Settings of the data: the `data:` block of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sandbox_rl.settings import Settings

__all__ = [
    "Columns",
    "ContextSettings",
    "DataSettings",
    "HubSource",
    "ReasoningGymSource",
    "Source",
    "TableSource",
]


class Columns(Settings):
    """Which column of a row holds which field of a task; None where there is none."""

    id: str | None = None
    """Unique name of the row. Without it the id is a hash of the row's content."""
    prompt: str = "prompt"
    """The question in words."""
    answer: str = "answer"
    """The gold answer: text or a number."""
    domain: str | None = None
    """Overrides the source's `domain` row by row."""
    scorer: str | None = None
    """Overrides the source's `scorer` row by row."""
    scorer_names: dict[str, str] = Field(default_factory=dict)
    """Value in the scorer column → scorer name, e.g. {single_choice: choice}."""
    files: str | None = None
    """Files of the task: a mapping of name → text, or that as a JSON string. May be empty."""
    context: str | None = None
    """Text that becomes files: one text, a list of texts, or a list of {title, text}."""
    group: str | None = None
    """Rows of equal value stay on one side of the train/held-out split, e.g. a document id."""
    metadata: tuple[str, ...] = ()
    """Columns kept for scorers and reports; never shown to the policy."""


class ContextSettings(Settings):
    """How a context column becomes files."""

    file_name: str = "document.txt"
    """Name of the file when a context is one untitled text; several are numbered."""
    distractors: int = Field(default=0, ge=0, le=64)
    """Files added from the contexts of other rows of the same split, under neutral names."""


class _SourceBase(Settings):
    name: str | None = None
    """What reports and errors call the source; by default its path, data set or generator."""
    weight: float = Field(1.0, gt=0)
    """Share in the mixture, relative to the other sources."""
    domain: str = "general"
    """Prompt set and line in reports."""
    held_out: float | None = Field(None, ge=0, le=1)
    """Replaces `data.held_out` for this source."""
    gold_is_answer: bool = True
    """Whether the gold text is itself an answer, which has to earn 1; false where it holds tests, say."""
    accept_degenerate: bool = False
    """Train although an answer that needs no work (a constant, the question, another task's gold answer)
    earns more than chance here."""


class ReasoningGymSource(_SourceBase):
    """Generated tasks with the generator's own verifier."""

    type: Literal["reasoning_gym"]
    dataset: str
    """Generator, e.g. chain_sum; `reasoning_gym.factory.DATASETS` lists them."""
    size: int = Field(500, ge=1)
    """Rows generated, train and held-out together."""
    seed: int = 0
    """Seed of the generator."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The generator's own difficulty settings."""
    scorer: str = "reasoning_gym"
    """Scorer; by default the generator's own verifier."""
    document: str | None = None
    """File name: the first paragraph of a question (its first line where there is one paragraph) goes into
    this file, and only the rest is asked."""
    partial: bool = False
    """Whether the verifier's partial marks count."""


class TableSource(_SourceBase):
    """Rows of a local .jsonl, .json, .csv or .parquet file."""

    type: Literal["table"]
    path: str
    """File, relative to the recipe."""
    columns: Columns = Columns()
    """Where the task's fields are."""
    scorer: str = "exact"
    """Scorer of rows that name none."""
    context: ContextSettings = ContextSettings()
    """How the context column becomes files."""
    file_names: Literal["strict", "sanitize"] = "strict"
    """Whether an unsafe file name makes the row bad or is made safe."""


class HubSource(_SourceBase):
    """A data set of the Hugging Face Hub."""

    type: Literal["hub"]
    dataset: str
    """Id, e.g. daixuancheng/llm-in-sandbox-rl."""
    config: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Its split; `held_out` divides it further."""
    revision: str | None = None
    """Commit, tag or branch; give a commit to repeat a run exactly."""
    columns: Columns = Columns()
    """Where the task's fields are."""
    scorer: str = "exact"
    """Scorer of rows that name none."""
    context: ContextSettings = ContextSettings()
    """How the context column becomes files."""
    file_names: Literal["strict", "sanitize"] = "sanitize"
    """Whether an unsafe file name makes the row bad or is made safe."""


Source = Annotated[ReasoningGymSource | TableSource | HubSource, Field(discriminator="type")]


class DataSettings(Settings):
    """Where tasks come from, how they are divided, and what happens to bad rows."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """At least one."""
    held_out: float = Field(0.1, ge=0, le=1)
    """Share of rows kept from training, decided by a hash, so it does not move when data are added."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop before anything starts, or leave such rows out and count them."""
    seed: int = 0
    """Order of the rows and choice of distractors."""
    shuffle: bool = True
    """Order rows within a source by a hash of their ids instead of as stored."""
    exhausted: Literal["continue", "stop"] = "continue"
    """When a source of the mixture ends: go on with the others (every row is used), or end the mixture so
    that the weights hold throughout."""
    limit: int | None = Field(None, ge=1)
    """Most tasks of a split, all sources together."""
    limit_held_out: int | None = Field(None, ge=1)
    """Most held-out tasks; by default as `limit`."""
    max_prompt_chars: int = Field(200_000, ge=1)
    """A longer question makes the row bad."""
    max_files_mb: float = Field(32.0, gt=0)
    """Most MiB of files of one task."""

    @model_validator(mode="after")
    def _names_differ(self) -> DataSettings:
        seen: set[str] = set()
        for source in self.sources:
            if source.name is not None and source.name in seen:
                raise ValueError(f"two sources are named {source.name!r}; give each its own name")
            if source.name is not None:
                seen.add(source.name)
        return self
