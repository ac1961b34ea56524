"""`str_replace_editor`: look at files and change them byte-exactly.

Files go through the sandbox's file operations, never through a shell. Line ends, tabs, byte-order
marks and a missing last newline stay as they are; a file that is not UTF-8 is refused, not mangled.
"""

from __future__ import annotations

import posixpath
from typing import Literal, TypeVar

from pydantic import Field, field_validator

from sandbox_rl.cooperate import give_way
from sandbox_rl.errors import FileProblem, SandboxFileError
from sandbox_rl.sandboxes.base import WORKING_DIR, Sandbox
from sandbox_rl.tools.arguments import BadArgumentsError, CheckedTool, NotDoneError, ToolArguments
from sandbox_rl.tools.lines import count_lines, insert_lines, line_of, number_lines, occurrences, snippet
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS, clip, quote
from sandbox_rl.types import Observation

MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 500
MOST_PLACES = 10  # named when a text that should occur once occurs more often

T = TypeVar("T")


class EditorArguments(ToolArguments):
    """A call's arguments; which of them a command needs is checked by the editor."""

    command: Literal["view", "create", "str_replace", "insert"] = Field(description="What to do.")
    path: str = Field(description=f"Absolute, or relative to {WORKING_DIR}.")
    file_text: str | None = Field(default=None, description="create: the whole content.")
    old_str: str | None = Field(default=None, description="str_replace: the text to replace.")
    new_str: str | None = Field(default=None, description="str_replace, insert: the new text.")
    insert_line: int | None = Field(default=None, description="insert: the line after which.")
    view_range: list[int] | None = Field(
        default=None, description="view: first and last line, [1, 50]; [51, -1] goes to the end."
    )

    @field_validator("path")
    @classmethod
    def _usable(cls, path: str) -> str:
        if not path.strip():
            raise ValueError(f"is empty; give a path such as {WORKING_DIR}/notes.txt")
        if "\0" in path:
            raise ValueError("holds a NUL character, which no path can")
        if path.startswith("~"):
            raise ValueError(f"begins with ~, which is not expanded; use {WORKING_DIR}/…")
        return path


class StrReplaceEditor(CheckedTool[EditorArguments]):
    """Views, creates and edits text files. File operations are bounded by their size, not by time."""

    name = "str_replace_editor"
    description = (
        "View, create and edit text files (UTF-8).\n"
        "* view: a file with line numbers, or a directory two levels deep; long files are cut, "
        "use view_range to see more.\n"
        "* create: a new file with file_text. It fails if the path exists.\n"
        "* str_replace: replace old_str by new_str. old_str must occur exactly once, to the "
        "character, white space included.\n"
        "* insert: put new_str as lines of its own after line insert_line (0: at the beginning)."
    )
    arguments = EditorArguments

    async def _run(self, sandbox: Sandbox, given: EditorArguments, timeout: float) -> Observation:
        path = _absolute(given.path)
        match given.command:
            case "view":
                text = await self._view(sandbox, path, given.view_range)
            case "create":
                text = await self._create(sandbox, path, _need(given.file_text, "file_text", "create"))
            case "str_replace":
                old = _need(given.old_str, "old_str", "str_replace")
                text = await self._replace(sandbox, path, old, given.new_str or "")
            case "insert":
                new = _need(given.new_str, "new_str", "insert")
                line = _need(given.insert_line, "insert_line", "insert")
                text = await self._insert(sandbox, path, line, new)
        return Observation(text, tool=self.name)

    async def _view(self, sandbox: Sandbox, path: str, view_range: list[int] | None) -> str:
        try:
            text = await _read(sandbox, path)
        except SandboxFileError as error:
            if error.problem is not FileProblem.IS_DIRECTORY:
                raise
            if view_range is not None:
                raise NotDoneError(
                    f"{quote(path, 200)} is a directory: view it without view_range."
                ) from None
            return await self._list(sandbox, path)
        total = count_lines(text)
        first, last = _range(view_range, total)
        notes = _notes(text)
        if not total:
            return f"{quote(path, 200)} is empty{notes}."
        head = f"{quote(path, 200)}, {_lines(total)}{notes}, from line {first}:"
        return f"{head}\n{number_lines(text, first, last, MAX_OBSERVATION_CHARS - len(head) - 1)}"

    async def _list(self, sandbox: Sandbox, path: str) -> str:
        entries = await sandbox.list_dir(path, max_entries=MAX_ENTRIES)
        if not entries:
            return f"{quote(path, 200)} is an empty directory (hidden files are not shown)."
        head = f"Files and directories in {quote(path, 200)}, two levels deep, hidden ones left out:"
        more = f"\n[only the first {MAX_ENTRIES} are shown]" if len(entries) >= MAX_ENTRIES else ""
        listing = "\n".join(quote(entry, 300)[1:-1] for entry in entries)
        return clip(f"{head}\n{listing}{more}", MAX_OBSERVATION_CHARS, max_lines=MAX_ENTRIES + 2)

    async def _create(self, sandbox: Sandbox, path: str, content: str) -> str:
        try:
            await sandbox.read_file(path, max_bytes=1)
        except SandboxFileError as error:
            exists = error.problem in (FileProblem.TOO_LARGE, FileProblem.PERMISSION, FileProblem.BUSY)
            if not exists and error.problem is not FileProblem.MISSING:
                raise
        else:
            exists = True
        if exists:
            raise NotDoneError(
                f"{quote(path, 200)} exists already; create does not overwrite. Change it with str_replace "
                "or insert, remove it with execute_bash first, or choose another path."
            )
        await sandbox.write_file(path, content.encode())
        return f"Created {quote(path, 200)} ({_lines(count_lines(content))})."

    async def _replace(self, sandbox: Sandbox, path: str, old: str, new: str) -> str:
        if not old:
            raise BadArgumentsError("old_str is empty; give the text to replace, or use insert.")
        if old == new:
            raise BadArgumentsError("old_str and new_str are the same; nothing would change.")
        text = await _read(sandbox, path)
        places = occurrences(text, old, MOST_PLACES)
        if not places:
            hint = " The file has CRLF line ends: write \\r\\n in old_str." if _only_crlf(text, old) else ""
            raise NotDoneError(
                f"old_str does not occur in {quote(path, 200)}: it must match to the character, white space "
                f"included.{hint} View the file and copy the text from there, without line numbers."
            )
        at = places[0]
        if len(places) > 1:
            lines = ", ".join(dict.fromkeys(str(line_of(text, place)) for place in places))
            times = f"{len(places)} times" if len(places) < MOST_PLACES else f"{MOST_PLACES} times or more"
            raise NotDoneError(
                f"old_str occurs {times} in {quote(path, 200)} (lines {lines}): add the lines around "
                "the one you mean, so that it occurs once."
            )
        changed = text[:at] + new + text[at + len(old) :]
        return await self._write(sandbox, path, changed, line_of(text, at), new)

    async def _insert(self, sandbox: Sandbox, path: str, line: int, new: str) -> str:
        if not new:
            raise BadArgumentsError("new_str is empty; give the lines to insert.")
        text = await _read(sandbox, path)
        total = count_lines(text)
        if not 0 <= line <= total:
            raise NotDoneError(
                f"insert_line is {line}, but {quote(path, 200)} has {_lines(total)}: use 0 to {total}."
            )
        return await self._write(sandbox, path, insert_lines(text, line, new), line + 1, new)

    async def _write(self, sandbox: Sandbox, path: str, text: str, first: int, new: str) -> str:
        data = text.encode()
        if len(data) > MAX_FILE_BYTES:
            raise NotDoneError(f"{quote(path, 200)} would grow to {len(data)} bytes, limit {MAX_FILE_BYTES}.")
        await sandbox.write_file(path, data)
        head = f"Edited {quote(path, 200)}. The place now reads:"
        return (
            f"{head}\n{snippet(text, first, max(count_lines(new), 1), MAX_OBSERVATION_CHARS - len(head) - 1)}"
        )


async def _read(sandbox: Sandbox, path: str) -> str:
    data = await sandbox.read_file(path, max_bytes=MAX_FILE_BYTES)
    await give_way()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotDoneError(
            f"{quote(path, 200)} is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}). "
            "Use execute_bash, for example `file`, `xxd | head` or `iconv -f LATIN1 -t UTF-8`."
        ) from None


def _absolute(path: str) -> str:
    """`path` from the root, without empty and "." parts; ".." is left to the sandbox, where links are."""
    joined = posixpath.join(WORKING_DIR, path)
    return "/" + "/".join(part for part in joined.split("/") if part not in ("", "."))


def _notes(text: str) -> str:
    """What numbered lines do not show and an edit has to respect."""
    crlf = " (CRLF line ends)" if "\r\n" in text else ""
    return crlf + (" (byte-order mark)" if text.startswith("\ufeff") else "")


def _need(value: T | None, argument: str, command: str) -> T:
    if value is None:
        raise BadArgumentsError(f"{argument} is missing; {command} needs it.")
    return value


def _range(view_range: list[int] | None, total: int) -> tuple[int, int]:
    if view_range is None:
        return 1, total
    if len(view_range) != 2:
        raise BadArgumentsError(f"view_range has {len(view_range)} numbers; it needs two, such as [1, 50].")
    first, last = view_range
    last = total if last == -1 else min(last, total) if last >= first else last
    if first < 1 or first > max(total, 1) or last < first - (total == 0):
        raise BadArgumentsError(
            f"view_range is {view_range}, but the file has {total} lines: the first must lie between 1 and "
            f"{max(total, 1)}, the last not before it, or -1 for the end."
        )
    return first, last


def _only_crlf(text: str, old: str) -> bool:
    return "\r\n" in text and "\n" in old and old.replace("\r\n", "\n") in text.replace("\r\n", "\n")


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"
