"""What `str_replace_editor` takes: the schema that the policy sees and the check that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from sandbox_rl.sandboxes.base import WORKING_DIR
from sandbox_rl.tools.arguments import ToolArguments

__all__ = ["SCHEMA", "EditorArguments"]


class EditorArguments(ToolArguments):
    """A call's arguments; which of them a command needs is checked by the editor."""

    command: Literal["view", "create", "str_replace", "insert"]
    path: str
    file_text: str | None = None
    old_str: str | None = None
    new_str: str | None = None
    insert_line: int | None = None
    view_range: list[int] | None = None

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


SCHEMA: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "str_replace_editor",
        "description": (
            "View, create and edit text files (UTF-8).\n"
            "* view: a file with line numbers, or a directory two levels deep; long files are cut, "
            "use view_range to see more.\n"
            "* create: a new file with file_text. It fails if the path exists.\n"
            "* str_replace: replace old_str by new_str. old_str must occur exactly once, to the "
            "character, white space included.\n"
            "* insert: put new_str as lines of its own after line insert_line (0: at the beginning)."
        ),
        "parameters": {
            "type": "object",
            "properties": {
                "command": {
                    "type": "string",
                    "enum": ["view", "create", "str_replace", "insert"],
                    "description": "What to do.",
                },
                "path": {"type": "string", "description": f"Absolute, or relative to {WORKING_DIR}."},
                "file_text": {"type": "string", "description": "create: the whole content."},
                "old_str": {"type": "string", "description": "str_replace: the text to replace."},
                "new_str": {"type": "string", "description": "str_replace, insert: the new text."},
                "insert_line": {"type": "integer", "description": "insert: the line after which."},
                "view_range": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "description": "view: first and last line, [1, 50]; [51, -1] goes to the end.",
                },
            },
            "required": ["command", "path"],
        },
    },
}
