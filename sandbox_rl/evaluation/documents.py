"""Long-document questions from texts that every machine has.

Three kinds in turn: how often a word occurs in a file, which file holds a line, which word is missing in a
line. The answers follow from the texts by the rule that the question states. The texts of a Python version
or a package version are its own: tasks are equal only where the versions are.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from sandbox_rl.errors import DataError
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.config import TaskSource
from sandbox_rl.types import Task

LONGEST = 200_000
"""Characters of a text that are used."""

TRIES = 200
"""Draws after which a kind of question does not fit the files."""

_SUFFIXES = (".txt", ".md", ".rst", ".py")
Files = Mapping[str, str]
Question = tuple[str, str, str]
"""Prompt, gold answer, scorer."""


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
        """As many questions as asked for, each about its own draw of files.

        Raises:
            DataError: the package is not there, or its texts are too few or do not carry such questions.
        """
        texts = self._texts()
        if len(texts) < self.files:
            raise DataError(
                f"package {self.package!r} has {len(texts)} texts of at least {self.min_chars} characters, "
                f"expected at least {self.files}; lower 'files' or 'min_chars', or name another package"
            )
        kinds = (("count", _count), ("find", _find), ("cloze", _cloze))
        tasks = []
        for index in range(self.size):
            rng = random.Random(derive_seed(self.seed, "documents", self.package, index))
            chosen = rng.sample(texts, self.files)
            files = {f"document_{number:02d}.txt": text for number, text in enumerate(chosen, start=1)}
            kind, make = kinds[index % len(kinds)]
            drawn = (make(files, rng) for _ in range(TRIES))
            question = next((found for found in drawn if found is not None), None)
            if question is None:
                raise DataError(
                    f"package {self.package!r}: no question of kind {kind} fits its texts; name another "
                    "package"
                )
            prompt, answer, scorer = question
            tasks.append(
                Task(
                    id=f"documents-{self.package}-{self.seed}-{index}",
                    prompt=prompt,
                    answer=answer,
                    files={name: text.encode() for name, text in files.items()},
                    domain=self.domain,
                    scorer=scorer,
                    metadata={"kind": kind},
                )
            )
        return tasks

    def _texts(self) -> list[str]:
        if self.package == "pydoc_data":
            from pydoc_data.topics import topics

            found = [text for _, text in sorted(topics.items())]
        else:
            folder = package_folder(self.package, self.package)
            paths = sorted(p for p in folder.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
            found = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
        unique = dict.fromkeys(text[:LONGEST] for text in found if "\0" not in text)
        return [text for text in unique if len(text) >= self.min_chars]


def occurrences(word: str, text: str) -> int:
    """How often a word stands in a text with no letter, digit or underscore beside it."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text))


def _count(files: Files, rng: random.Random) -> Question | None:
    name = rng.choice(sorted(files))
    word = rng.choice(sorted(set(re.findall(r"(?<!\w)[a-z]{5,12}(?!\w)", files[name]))) or [""])
    count = occurrences(word, files[name])
    if not 4 <= count <= 80:
        return None
    prompt = (
        f"How often does the word '{word}' occur in the file {name}? Count it where no letter, digit or "
        "underscore stands directly before or after it, in exactly this spelling."
    )
    return prompt, str(count), "numeric"


def _find(files: Files, rng: random.Random) -> Question | None:
    name, line = _line(files, rng)
    prompt = f"Which of the files holds the following line? Answer with the file's name.\n\n{line}"
    return (prompt, name, "exact") if line else None


def _cloze(files: Files, rng: random.Random) -> Question | None:
    _, line = _line(files, rng)
    words = list(re.finditer(r"(?<!\w)[a-z]{5,14}(?!\w)", line))
    if not words:
        return None
    gap = rng.choice(words)
    before, after = line[: gap.start()], line[gap.end() :]
    pattern = re.compile(rf"{re.escape(before)}(\w+){re.escape(after)}")
    if sum(len(pattern.findall(text)) for text in files.values()) != 1:
        return None
    prompt = (
        f"In the following line of one of the files a word is replaced by ____. Which word?\n\n"
        f"{before}____{after}"
    )
    return prompt, gap.group(), "exact"


def _line(files: Files, rng: random.Random) -> tuple[str, str]:
    """A file, and a line of some length in it that occurs once in all files; "" where the draw is none."""
    name = rng.choice(sorted(files))
    lines = [line.strip() for line in files[name].splitlines()]
    line = rng.choice([line for line in lines if len(line) >= 50 and " " in line] or [""])
    return name, line if line and sum(text.count(line) for text in files.values()) == 1 else ""


def package_folder(module: str, install: str) -> Path:
    """The folder of an importable package. Nothing is imported: its code may want what is not there.

    Args:
        install: what to give to pip.

    Raises:
        DataError: it is not installed.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"package {module!r} is not installed; pip install {install}")
    return Path(next(iter(spec.submodule_search_locations)))
