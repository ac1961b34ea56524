"""From one row to one task, with every field checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_rl.tasks.config import ContextSettings, DataSettings, RowsSource
from sandbox_rl.tasks.names import collision, problem_of_name, safe_name, title_to_name
from sandbox_rl.tasks.rows import Row, RowProblem, shown
from sandbox_rl.types import Task

Documents = tuple[tuple[str, str], ...]
"""(title or "", text) of each document of a context."""

_ANSWER_CHARS = 65_536
_ID_CHARS = 256


def content_key(*parts: str) -> str:
    """A short name for content: equal content, equal name, on every machine."""
    digest = hashlib.blake2b(digest_size=10)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def text_field(row: Row, column: str, *, limit: int, number: bool = False) -> str:
    """The non-empty text in a column; numbers are written out where `number`.

    Raises:
        RowProblem: it is missing, null, NaN, of another type, blank, too long, or not proper Unicode.
    """
    if column not in row:
        raise RowProblem(column, f"is missing; the row has {', '.join(map(str, list(row)[:8])) or 'nothing'}")
    value = row[column]
    if value is None:
        raise RowProblem(column, "is null; expected text")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowProblem(column, f"is {value}; expected text")
    if number and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowProblem(column, f"is {shown(value)} ({type(value).__name__}); expected text")
    if not value.strip():
        raise RowProblem(column, "is empty; expected text")
    if len(value) > limit:
        raise RowProblem(column, f"has {len(value)} characters; the limit is {limit}")
    _check_unicode(value, column)
    if "\0" in value:
        raise RowProblem(column, "holds a NUL character")
    return value


def _check_unicode(text: str, column: str) -> None:
    """Raise `RowProblem` for text that cannot be written as UTF-8."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise RowProblem(column, f"is not proper Unicode (half a surrogate pair at {error.start})") from error


def labels_of(row: Row, source: RowsSource) -> tuple[str, str]:
    """Domain and scorer of a row. Raises `RowProblem` where their columns hold none."""
    columns = source.columns
    domain = text_field(row, columns.domain, limit=_ID_CHARS) if columns.domain else source.domain
    if columns.scorer is None or row.get(columns.scorer) is None:
        return domain, source.scorer
    value = text_field(row, columns.scorer, limit=_ID_CHARS)
    names = columns.scorer_names
    if names and value not in names and "*" not in names:
        raise RowProblem(columns.scorer, f"is {shown(value)}; 'scorer_names' knows {', '.join(names)}")
    return domain, names.get(value, names.get("*", value))


class RowConverter:
    """Turns the rows of one table or Hub source into tasks.

    Args:
        source: its settings.
        name: what the source is called in ids and reports.
        data: the block that it stands in, with the limits of one task.
    """

    def __init__(self, source: RowsSource, name: str, data: DataSettings) -> None:
        self._source = source
        self._name = name
        self._max_prompt_chars = data.max_prompt_chars
        self._max_files_bytes = int(data.max_files_mb * (1 << 20))

    def task(self, row: Row) -> Task:
        """The task without distractor files.

        Raises:
            RowProblem: the first field that cannot be used.
        """
        source, columns = self._source, self._source.columns
        prompt = text_field(row, columns.prompt, limit=self._max_prompt_chars)
        answer = text_field(row, columns.answer, limit=_ANSWER_CHARS, number=True)
        files = self._files(row)
        domain, scorer = labels_of(row, source)
        metadata = {name: _json_value(row, name) for name in columns.metadata}
        return Task(
            id=self._id(row, prompt, answer, files),
            prompt=prompt,
            answer=answer,
            files=files,
            domain=domain,
            scorer=scorer,
            metadata=metadata,
        )

    def split_key(self, row: Row, task: Task) -> str:
        """What decides the side of the split: the group, else the context, else the id."""
        columns = self._source.columns
        if columns.group is not None:
            return text_field(row, columns.group, limit=1 << 20, number=True)
        if columns.context is not None and row.get(columns.context):
            return content_key(*(text for _, text in self.documents(row)))
        return task.id

    def documents(self, row: Row) -> Documents:
        """The documents of the row's context; empty where it has none."""
        column = self._source.columns.context
        if column is None or row.get(column) is None:
            return ()
        return read_documents(row[column], column)

    def _id(self, row: Row, prompt: str, answer: str, files: Mapping[str, bytes]) -> str:
        column = self._source.columns.id
        if column is not None:
            return text_field(row, column, limit=_ID_CHARS, number=True)
        if not files:
            return f"{self._name}-{content_key(prompt, answer)}"
        contents = (content_key(name, data.hex()) for name, data in sorted(files.items()))
        return f"{self._name}-{content_key(prompt, answer, *contents)}"

    def _files(self, row: Row) -> dict[str, bytes]:
        columns = self._source.columns
        pairs: list[tuple[str, str]] = []
        if columns.files is not None:
            pairs += self._given_files(row, columns.files)
        documents = self.documents(row)
        pairs += files_of_context(documents, self._source.context)
        if not pairs:
            return {}
        column = columns.files or columns.context or "files"
        if (twice := collision(name for name, _ in pairs)) is not None:
            raise RowProblem(column, f"file name {shown(twice)} collides with another one")
        files = {name: text.encode() for name, text in pairs}
        size = sum(map(len, files.values()))
        if size > self._max_files_bytes:
            raise RowProblem(
                column, f"files of {size} bytes; data.max_files_mb allows {self._max_files_bytes}"
            )
        return files

    def _given_files(self, row: Row, column: str) -> list[tuple[str, str]]:
        value = row.get(column)
        if value is None or value == "":
            return []
        if isinstance(value, str):
            try:
                value = json.loads(value, object_pairs_hook=list)  # a plain dict would hide equal names
            except (ValueError, RecursionError) as error:
                raise RowProblem(column, f"is not JSON ({error}); expected {{file name: text}}") from error
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
            raise RowProblem(column, f"is {shown(value)}; expected {{file name: text}}")
        # Tables with one column per file name hold null where a row lacks that file.
        named = [(name, text) for name, text in pairs if text is not None]
        if self._source.file_names == "sanitize":
            named = [(safe_name(name), text) for name, text in named]
        for name, text in named:
            if (problem := problem_of_name(name)) is not None:
                raise RowProblem(column, f"file name {shown(name)} {problem}")
            if not isinstance(text, str):
                raise RowProblem(column, f"file {shown(name)} is a {type(text).__name__}; expected text")
            _check_unicode(text, f"{column}, file {shown(name)}")
        return named


def read_documents(value: Any, column: str) -> Documents:
    """The documents in a context value: text, a list of texts, or a list of {title, text}.

    Raises:
        RowProblem: it is none of these.
    """
    if isinstance(value, str) and value and not value.isspace():
        _check_unicode(value, column)
        return (("", value),)
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    documents = []
    for item in items:
        if isinstance(item, Mapping):
            title, text = item.get("title") or "", item.get("text", item.get("content"))
        else:
            title, text = "", item
        if not isinstance(text, str) or not isinstance(title, str) or not text.strip():
            raise RowProblem(
                column, f"holds {shown(item)}; expected text, or {{title, text}}, or a list of them"
            )
        _check_unicode(text, column)
        _check_unicode(title, column)
        documents.append((title, text))
    return tuple(documents)


def files_of_context(documents: Documents, settings: ContextSettings) -> list[tuple[str, str]]:
    """File name and text of each document; titles name files, the rest are numbered."""
    stem, dot, suffix = settings.file_name.rpartition(".")
    stem, ending = (stem, f".{suffix}") if dot else (settings.file_name, "")
    several = len(documents) > 1
    files = []
    for number, (title, text) in enumerate(documents, start=1):
        plain = f"{stem}_{number:02d}{ending}" if several else settings.file_name
        files.append((title_to_name(title, plain) if title else plain, text))
    return files


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _json_value(row: Row, column: str) -> Any:
    if column not in row:
        raise RowProblem(column, "is missing; it is listed under 'metadata'")
    try:
        json.dumps(row[column], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowProblem(column, f"is {shown(row[column])}; expected a JSON value ({error})") from error
    return row[column]
