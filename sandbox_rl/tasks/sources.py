"""Sources of rows, opened: scanned once for validation, then asked for single tasks."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Protocol

from sandbox_rl.errors import DataError
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.config import DataSettings, ReasoningGymSource, RowsSource
from sandbox_rl.tasks.convert import Documents, RowConverter, content_key
from sandbox_rl.tasks.names import problem_of_name
from sandbox_rl.tasks.rows import RowProblem, Rows
from sandbox_rl.types import Task


class OpenSource(Protocol):
    """Rows of one source as tasks; the base of those here."""

    name: str

    def scan(self) -> Iterator[tuple[str, str] | RowProblem]:
        """Every row in order: (task id, key of the split), or why it is bad."""
        ...

    def restrict(self, rows: array[int]) -> None:
        """Tell the source which of its rows are in use: distractors come from these alone."""
        return

    def place(self, index: int) -> str:
        """Where a person finds the row."""
        return f"row {index}"

    def task(self, index: int) -> Task:
        """The task of a row that `scan` found good."""
        ...


class ListedSource(OpenSource):
    """A source whose tasks are all there.

    Args:
        tasks: all of them, in an order that never changes.
    """

    def __init__(self, name: str, tasks: Iterable[Task]) -> None:
        self.name = name
        self._tasks = tuple(tasks)

    def scan(self) -> Iterator[tuple[str, str] | RowProblem]:
        """Equal questions about equal files fall on the same side of the split."""
        for task in self._tasks:
            if not task.prompt.strip():
                yield RowProblem("prompt", "is empty")
                continue
            files = "".join(f"\0{name}\0{data.hex()}" for name, data in sorted(task.files.items()))
            yield task.id, content_key(task.prompt + files)

    def place(self, index: int) -> str:
        return f"task {index}"

    def task(self, index: int) -> Task:
        return self._tasks[index]


class RowSource(OpenSource):
    """A table or Hub data set."""

    def __init__(self, source: RowsSource, rows: Rows, settings: DataSettings) -> None:
        self.name = rows.name
        self._rows = rows
        self._seed = settings.seed
        self._distractors = source.context.distractors
        self._used: array[int] = array("Q")
        self._converter = RowConverter(source, rows.name, settings)

    def scan(self) -> Iterator[tuple[str, str] | RowProblem]:
        """Convert every row once, keeping nothing but its names."""
        for row in self._rows:
            try:
                if isinstance(row, RowProblem):
                    raise row
                task = self._converter.task(row)
                yield task.id, self._converter.split_key(row, task)
            except RowProblem as problem:
                yield problem

    def restrict(self, rows: array[int]) -> None:
        self._used = rows

    def place(self, index: int) -> str:
        return self._rows.place(index)

    def task(self, index: int) -> Task:
        """The task, with distractor files where the settings ask for them."""
        row = self._rows.row(index)
        task = self._converter.task(row)
        if not self._distractors:
            return task
        own = self._converter.documents(row)
        return replace(task, files=_shuffled_files(task, self._others(task, own), own, self._seed))

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
    """Own and foreign documents under numbered names, in an order that does not distinguish them."""
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


class GymSource(OpenSource):
    """One generator of reasoning-gym. Row i depends on (parameters, seed, i) alone: it is made when needed.

    Raises:
        DataError: no such generator, or it refuses its parameters.
    """

    def __init__(self, source: ReasoningGymSource, name: str) -> None:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        self.name = name
        self._source = source
        if source.dataset not in DATASETS:
            near = get_close_matches(source.dataset, DATASETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see reasoning_gym.factory.DATASETS"
            raise DataError(f"data: reasoning-gym has no generator {source.dataset!r}; {hint}")
        if source.document is not None and (problem := problem_of_name(source.document)):
            raise DataError(f"data: 'document' {source.document!r} {problem}; expected a plain file name")
        try:
            self._rows: Any = reasoning_gym.create_dataset(
                source.dataset, size=source.size, seed=source.seed, **source.params
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise DataError(f"data: generator {source.dataset!r} refuses its 'params': {error}") from error

    def scan(self) -> Iterator[tuple[str, str] | RowProblem]:
        """Generate every row once. Equal questions fall on the same side of the split."""
        for index in range(self._source.size):
            try:
                entry = self._rows[index]
                json.dumps(entry["metadata"], default=str)
            except Exception as error:  # a generator is foreign code; one failing row is a bad row
                yield RowProblem("question", f"cannot be generated: {error!r}")
                continue
            if not isinstance(entry["answer"], str) or not entry["question"].strip():
                yield RowProblem("answer", "is not text")
                continue
            yield self._id(index), content_key(entry["question"])

    def task(self, index: int) -> Task:
        entry = self._rows[index]
        question, files = entry["question"], dict[str, bytes]()
        if self._source.document is not None:
            first, gap, rest = question.strip().partition("\n\n" if "\n\n" in question else "\n")
            if gap and rest.strip():
                files = {self._source.document: first.encode()}
                question = f"{rest.strip()}\n\nThe text it is about is in the file {self._source.document}."
        metadata = {"dataset": self._source.dataset, "entry": entry}
        if self._source.partial:
            metadata["partial"] = True
        return Task(
            id=self._id(index),
            prompt=question,
            answer=entry["answer"],
            files=files,
            domain=self._source.domain,
            scorer=self._source.scorer,
            metadata=metadata,
        )

    def _id(self, index: int) -> str:
        source = self._source
        if not source.params:
            return f"{source.dataset}-{source.seed}-{index}"
        key = content_key(json.dumps(source.params, sort_keys=True, default=str))
        return f"{source.dataset}-{key[:6]}-{source.seed}-{index}"
