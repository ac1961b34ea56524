"""Sources of rows, opened: scanned once for validation, then asked for single tasks."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator
from typing import Protocol

from sandbox_rl.errors import DataError
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.config import DataSettings, RowsSource
from sandbox_rl.tasks.convert import Documents, RowConverter, content_key
from sandbox_rl.tasks.report import BadRow, RowProblem
from sandbox_rl.tasks.rows import Rows
from sandbox_rl.types import Task

__all__ = ["ListedSource", "OpenSource", "RowSource"]


class OpenSource(Protocol):
    """Rows of one source as tasks."""

    name: str

    def scan(self) -> Iterator[tuple[str, str] | BadRow]:
        """Every row in order: (task id, key of the split), or why it is bad."""
        ...

    def restrict(self, rows: array[int]) -> None:
        """Tell the source which of its rows are in use: distractors come from these alone."""
        ...

    def place(self, index: int) -> str:
        """Where a person finds the row."""
        ...

    def task(self, index: int) -> Task:
        """The task of a row that `scan` found good."""
        ...


class ListedSource:
    """A source whose tasks are all there.

    Args:
        tasks: all of them, in an order that never changes.
    """

    def __init__(self, name: str, tasks: Iterable[Task]) -> None:
        self.name = name
        self._tasks = tuple(tasks)

    def scan(self) -> Iterator[tuple[str, str] | BadRow]:
        """Equal questions about equal files fall on the same side of the split."""
        for index, task in enumerate(self._tasks):
            if not task.prompt.strip():
                yield BadRow(self.name, index, self.place(index), "prompt", "is empty")
                continue
            files = "".join(f"\0{name}\0{data.hex()}" for name, data in sorted(task.files.items()))
            yield task.id, content_key(task.prompt + files)

    def restrict(self, rows: array[int]) -> None:
        """Its tasks are as they are."""

    def place(self, index: int) -> str:
        """The task's number."""
        return f"task {index}"

    def task(self, index: int) -> Task:
        """One of them."""
        return self._tasks[index]


class RowSource:
    """A table or Hub data set."""

    def __init__(self, source: RowsSource, rows: Rows, settings: DataSettings) -> None:
        self.name = rows.name
        self._rows = rows
        self._seed = settings.seed
        self._distractors = source.context.distractors
        self._used: array[int] = array("Q")
        self._converter = RowConverter(
            source,
            rows.name,
            max_prompt_chars=settings.max_prompt_chars,
            max_files_bytes=int(settings.max_files_mb * (1 << 20)),
        )

    def scan(self) -> Iterator[tuple[str, str] | BadRow]:
        """Convert every row once, keeping nothing but its names."""
        for index, row in enumerate(self._rows):
            try:
                if isinstance(row, RowProblem):
                    raise row
                task = self._converter.task(row)
                yield task.id, self._converter.split_key(row, task)
            except RowProblem as problem:
                yield BadRow(self.name, index, self.place(index), problem.field, problem.reason)

    def restrict(self, rows: array[int]) -> None:
        """Remember the split's rows, from which distractors are drawn."""
        self._used = rows

    def place(self, index: int) -> str:
        """Where a person finds the row."""
        return self._rows.place(index)

    def task(self, index: int) -> Task:
        """The task, with distractor files where the settings ask for them."""
        row = self._rows.row(index)
        task = self._converter.task(row)
        if not self._distractors:
            return task
        own = self._converter.documents(row)
        files = _shuffled_files(task, self._others(task, own), own, self._seed)
        return Task(
            id=task.id,
            prompt=task.prompt,
            answer=task.answer,
            files=files,
            domain=task.domain,
            scorer=task.scorer,
            metadata=task.metadata,
        )

    def _others(self, task: Task, own: Documents) -> list[str]:
        rng = random.Random(derive_seed(self._seed, "distractors", task.id))
        seen = {content_key(text) for _, text in own}
        texts: list[str] = []
        # Rows often share a context, so more are looked at than are needed.
        for _ in range(min(8 * self._distractors, 4 * len(self._used))):
            if len(texts) == self._distractors:
                break
            documents = self._converter.documents(self._rows.row(self._used[rng.randrange(len(self._used))]))
            for _, text in documents[:1]:
                if (key := content_key(text)) not in seen:
                    seen.add(key)
                    texts.append(text)
        return texts


def _shuffled_files(task: Task, others: list[str], own: Documents, seed: int) -> dict[str, bytes]:
    """Own and foreign documents under numbered names, in an order that does not tell them apart."""
    texts = [text for _, text in own] + others
    random.Random(derive_seed(seed, "order", task.id)).shuffle(texts)
    kept = {name: data for name, data in task.files.items() if data.decode() not in set(texts)}
    width = max(2, len(str(len(texts))))
    numbered = {f"document_{n:0{width}d}.txt": text.encode() for n, text in enumerate(texts, start=1)}
    if clash := kept.keys() & numbered.keys():
        raise DataError(
            f"task {task.id!r}: file {min(clash)!r} collides with a distractor's name; rename the file"
        )
    return {**kept, **numbered}
