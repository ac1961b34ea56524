"""Settings of the data: the `data:` block of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sandbox_rl.registry import Registry
from sandbox_rl.settings import ByType, Settings, Variant
from sandbox_rl.types import Task

if TYPE_CHECKING:
    from sandbox_rl.tasks.rows import Rows
    from sandbox_rl.tasks.sources import OpenSource


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
    """Value in the scorer column → scorer name, e.g. {single_choice: choice}; `*` is any other value."""
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


class TaskSource(Variant):
    """Settings of a source of tasks, which open it: the base of those of your own, which say `tasks`."""

    in_order: ClassVar[bool] = False
    """Whether tasks are taken as they come, because every beginning of them is a fair sample."""

    name: str | None = None
    """What reports and errors call the source; by default its path, data set or generator."""
    weight: float = Field(1.0, gt=0)
    """Share in the mixture, relative to the other sources."""
    domain: str = "general"
    """Prompt set and line in reports."""
    scorer: str = "exact"
    """Scorer of tasks that name none."""
    held_out: float | None = Field(None, ge=0, le=1)
    """Replaces `data.held_out` for this source."""
    gold_is_answer: bool = True
    """Whether the gold text is itself an answer, which has to earn 1; false where it holds tests, say."""
    accept_degenerate: bool = False
    """Train although an answer that needs no work (a constant, the question, another task's gold answer)
    earns more than chance here."""

    @property
    def label(self) -> str:
        """What reports and errors call it."""
        return self.name or self.type.rpartition(":")[2]

    def tasks(self) -> Iterable[Task]:
        """All tasks, training and held-out together; the same in every process and every start.

        Raises:
            DataError: they are not available.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say its tasks")

    def open(self, data: DataSettings, base_dir: Path, number: int) -> OpenSource:
        """Open it for reading; a source that builds a task only when it is needed says this instead.

        Args:
            data: the block that it stands in.
            base_dir: what relative paths are relative to.
            number: its place among the sources.

        Raises:
            DataError: it cannot be read at all.
        """
        from sandbox_rl.tasks.sources import ListedSource

        return ListedSource(self.label, self.tasks())

    def anchored(self, base_dir: Path) -> Self:
        """The same with paths made absolute."""
        return self


class ReasoningGymSource(TaskSource):
    """Generated tasks with the generator's own verifier."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
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

    @property
    def label(self) -> str:
        return self.name or self.dataset

    def open(self, data: DataSettings, base_dir: Path, number: int) -> OpenSource:
        from sandbox_rl.tasks.sources import GymSource

        return GymSource(self, self.name or (f"{self.dataset}-{number}" if number else self.dataset))


class RowsSource(TaskSource):
    """A source of rows with columns."""

    columns: Columns = Columns()
    """Where the task's fields are."""
    context: ContextSettings = ContextSettings()
    """How the context column becomes files."""
    file_names: Literal["strict", "sanitize"] = "strict"
    """Whether an unsafe file name makes the row bad or is made safe."""

    def rows(self, base_dir: Path) -> Rows:
        """The rows.

        Raises:
            DataError: they are not available.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say its rows")

    def open(self, data: DataSettings, base_dir: Path, number: int) -> OpenSource:
        """Its rows as tasks."""
        from sandbox_rl.tasks.sources import RowSource

        return RowSource(self, self.rows(base_dir), data)


class TableSource(RowsSource):
    """Rows of a local .jsonl, .json, .csv or .parquet file."""

    type: Literal["table"] = "table"
    path: str
    """File, relative to the recipe."""

    @property
    def label(self) -> str:
        """The file's name, not where it lies."""
        return self.name or Path(self.path).name

    def rows(self, base_dir: Path) -> Rows:
        from sandbox_rl.tasks.rows import open_table

        return open_table(base_dir / self.path, self.label)

    def anchored(self, base_dir: Path) -> Self:
        return self.model_copy(update={"path": str(base_dir / self.path)})


class HubSource(RowsSource):
    """A data set of the Hugging Face Hub."""

    type: Literal["hub"] = "hub"
    dataset: str
    """Id, e.g. daixuancheng/llm-in-sandbox-rl."""
    config: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Its split; `held_out` divides it further."""
    revision: str | None = None
    """Commit, tag or branch; give a commit to repeat a run exactly."""
    file_names: Literal["strict", "sanitize"] = "sanitize"
    """Whether an unsafe file name makes the row bad or is made safe."""

    @property
    def label(self) -> str:
        return self.name or self.dataset

    def rows(self, base_dir: Path) -> Rows:
        from sandbox_rl.tasks.rows import open_hub

        return open_hub(self)


SOURCES: Registry[type[TaskSource]] = Registry(
    "task source",
    {"reasoning_gym": ReasoningGymSource, "table": TableSource, "hub": HubSource},
    group="sandbox_rl.sources",
    check=lambda thing: isinstance(thing, type) and issubclass(thing, TaskSource),
    expected="a class derived from sandbox_rl.tasks.config.TaskSource",
)
"""Where tasks can come from."""

Source = Annotated[TaskSource, ByType(SOURCES)]
"""Settings of any source, distinguished by `type`."""


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
        for name, count in Counter(source.name for source in self.sources).items():
            if name is not None and count > 1:
                raise ValueError(f"two sources are named {name!r}; give each its own name")
        return self

    def held_out_of(self, source: TaskSource) -> float:
        """The share of a source's rows that is kept from training."""
        return self.held_out if source.held_out is None else source.held_out
