"""From rows of context, question and answer to context tasks, in two passes over the rows.

The first pass keeps 16 bytes a row (its context's hash and the previous row of that context) and one
dictionary entry a context; the second writes each task as it is made, and keeps a hash of its id. Equal rows,
settings and seed give equal files, byte for byte. What is written can be loaded, so a row is judged here by
the rules of loading.
"""

from __future__ import annotations

import json
import random
from array import array
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from sandbox_rl.build_data.config import BuildSettings
from sandbox_rl.build_data.files import named_files, occurs_in_name, split_text
from sandbox_rl.errors import DataError
from sandbox_rl.outputs import new_files
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.convert import Documents, content_key, labels_of, read_documents, text_field
from sandbox_rl.tasks.load import hash64, is_held_out
from sandbox_rl.tasks.rows import BadRow, BadRows, Row, RowProblem, Rows

_NONE = (1 << 64) - 1
_ANSWER_CHARS = 65_536
_COUNTED = ("train", "held_out", "files", "distractors", "examples", "split_documents")

_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder for each row


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


def build_data(settings: BuildSettings, *, base_dir: Path) -> BuildReport:
    """Write train.jsonl, held_out.jsonl and report.json.

    Each line has the columns of the paper's data set (id, domain, problem_statement, ground_truth,
    input_files as a JSON string) and `scorer`, `context_id`.

    Args:
        base_dir: what the paths in the settings are relative to.

    Raises:
        ConfigError: one of the three files exists.
        DataError: the source cannot be read, has no context column, or no row is usable.
    """
    source = settings.source
    if source.columns.context is None:
        raise DataError(
            "build-data: source.columns.context is not set; name the column that holds the context"
        )
    rows = source.rows(base_dir)
    target = base_dir / settings.output_dir
    builder = _Builder(settings, rows)
    with new_files(target, ("train.jsonl", "held_out.jsonl", "report.json"), "output_dir") as partial:
        with ExitStack() as stack:
            outputs = {
                name: stack.enter_context((partial / f"{name}.jsonl").open("w", encoding="utf-8"))
                for name in ("train", "held_out")
            }
            report = builder.write(outputs)
        if not report.train + report.held_out:
            first = f"; the first: {report.dropped[0]}" if report.dropped else ""
            raise DataError(f"build-data: none of {report.rows} rows of {rows.name} is usable{first}")
        (partial / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


class _Builder:
    def __init__(self, settings: BuildSettings, rows: Rows) -> None:
        self._settings = settings
        self._columns = settings.source.columns
        self._rows = rows
        self._keys = array("Q")  # hash of each row's context; 0 for a bad row
        self._sides = bytearray()  # 1 where the row is held out
        self._previous = array("Q")  # the row before of the same context
        self._counts: Counter[str] = Counter()
        self._bad = BadRows()
        self._largest = 0
        self._ids: set[int] = set()

    def write(self, outputs: Mapping[str, TextIO]) -> BuildReport:
        contexts = self._index()
        for index, row in enumerate(self._rows):
            if not self._keys[index] or isinstance(row, RowProblem):
                continue
            side = "held_out" if self._sides[index] else "train"
            try:
                outputs[side].write(_encode(self._built(index, row)) + "\n")
            except RowProblem as problem:
                self._bad.add(self._rows, index, problem)
                continue
            self._counts[side] += 1
        written = max(1, self._counts["train"] + self._counts["held_out"])
        return BuildReport(
            rows=len(self._keys),
            contexts=contexts,
            dropped_rows=self._bad.by_field.total(),
            dropped=tuple(self._bad.listed),
            by_field=dict(self._bad.by_field),
            **{name: self._counts[name] for name in _COUNTED},
            mean_prompt_chars=self._counts["prompt_chars"] / written,
            mean_files_chars=self._counts["files_chars"] / written,
            max_files_chars=self._largest,
        )

    def _index(self) -> int:
        """First pass: check every row, hash its context, chain the rows of equal contexts."""
        last: dict[int, int] = {}
        for index, row in enumerate(self._rows):
            key, before = 0, _NONE
            try:
                if isinstance(row, RowProblem):
                    raise row
                text_field(row, self._columns.prompt, limit=self._settings.max_prompt_chars)
                text_field(row, self._columns.answer, limit=_ANSWER_CHARS, number=True)
                labels_of(row, self._settings.source)
                key = self._key(row)
                before = last.get(key, _NONE)
                last[key] = index
            except RowProblem as problem:
                self._bad.add(self._rows, index, problem)
            self._keys.append(key)
            # A row is judged by the name it is grouped under later, so loading agrees with building.
            held_out = before != _NONE and self._sides[before]
            if before == _NONE and key:
                held_out = is_held_out(f"{key:016x}", self._settings.held_out)
            self._sides.append(int(held_out))
            self._previous.append(before)
        return len(last)

    def _key(self, row: Row) -> int:
        documents = self._documents(row)
        if self._columns.group is not None:
            text = text_field(row, self._columns.group, limit=1 << 20, number=True)
        else:
            text = "\0".join(text for _, text in documents)
        return hash64(text) or 1

    def _documents(self, row: Row) -> Documents:
        column = self._columns.context or ""
        if row.get(column) is None:
            raise RowProblem(column, "is missing; expected the text that the question is about")
        return read_documents(row[column], column)

    def _built(self, index: int, row: Row) -> dict[str, str]:
        columns, settings = self._columns, self._settings
        question = str(row[columns.prompt]).strip()
        answer = str(row[columns.answer]).strip()
        documents = self._documents(row)
        context_id = f"{self._keys[index]:016x}"
        task_id = self._id(row, context_id, question, answer)
        domain, scorer = labels_of(row, settings.source)
        files: list[tuple[str, str]] = []
        for title, text in documents:
            if len(text) <= settings.max_file_chars:
                files.append((title, text.strip()))
                continue
            pieces = split_text(text, settings.max_file_chars)
            self._counts["split_documents"] += len(pieces) > 1
            many = len(pieces) > 1 and bool(title)
            files += [(f"{title} part {at}" if many else title, piece) for at, piece in enumerate(pieces, 1)]
        rng = random.Random(derive_seed(settings.seed, "build", index))
        if len(files) == 1 and settings.distractors:
            others = self._distractors(rng, index, answer)
            self._counts["distractors"] += len(others)
            files += others
            rng.shuffle(files)
        named = named_files(files)
        for name in named if any(title for title, _ in files) else ():
            if occurs_in_name(answer, name):
                raise RowProblem(
                    columns.context or "context",
                    f"file name {name!r} holds the answer {answer!r:.60}; rename or drop the title",
                )
        prompt = self._prompt(index, question, answer)
        size = sum(map(len, named.values()))
        self._counts["files"] += len(named)
        self._counts["prompt_chars"] += len(prompt)
        self._counts["files_chars"] += size
        self._largest = max(self._largest, size)
        return {
            "id": task_id,
            "domain": domain,
            "problem_statement": prompt,
            "ground_truth": answer,
            "scorer": scorer,
            "input_files": _encode(named),
            "context_id": context_id,
        }

    def _distractors(self, rng: random.Random, index: int, answer: str) -> list[tuple[str, str]]:
        """Documents of other contexts on the same side of the split, without the answer in them."""
        wanted, total = self._settings.distractors, len(self._keys)
        side, used = self._sides[index], {self._keys[index]}
        needle = answer.casefold() if len(answer) > 2 else "\0"
        found: list[tuple[str, str]] = []
        for _ in range(20 * wanted):
            other = int(rng.random() * total)
            key = self._keys[other]
            if not key or key in used or self._sides[other] != side:
                continue
            used.add(key)
            title, text = self._documents(self._rows.row(other))[0]
            if len(text) > self._settings.max_file_chars:
                text = split_text(text, self._settings.max_file_chars)[0]
            if needle in text.casefold() or (title and occurs_in_name(answer, title)):
                continue
            found.append((title, text))
            if len(found) == wanted:
                break
        return found

    def _prompt(self, index: int, question: str, answer: str) -> str:
        """The question after worked examples: the nearest earlier questions of the same context."""
        examples: list[str] = []
        at = self._previous[index]
        for _ in range(4 * self._settings.examples):
            if at == _NONE or len(examples) == self._settings.examples:
                break
            row = self._rows.row(at)
            shown, said = str(row[self._columns.prompt]).strip(), str(row[self._columns.answer]).strip()
            if said.casefold() != answer.casefold() and shown != question:  # an example must not tell
                examples.append(f"Question: {shown}\nAnswer: {said}")
            at = self._previous[at]
        if not examples:
            return question
        self._counts["examples"] += len(examples)
        return (
            "Solved questions about the same documents:\n\n"
            + "\n\n".join(reversed(examples))
            + f"\n\nNow the question to answer:\n{question}"
        )

    def _id(self, row: Row, context_id: str, question: str, answer: str) -> str:
        task_id = f"{context_id}-{content_key(question, answer)[:10]}"
        if self._columns.id is not None:
            task_id = text_field(row, self._columns.id, limit=256, number=True)
        if hash64(task_id) in self._ids:
            raise RowProblem("id", f"{task_id!r:.80} was seen before; ids must be unique")
        self._ids.add(hash64(task_id))
        return task_id
