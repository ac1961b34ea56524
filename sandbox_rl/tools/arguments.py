"""Tools whose arguments are checked by a model, with messages that tell the policy what to do instead."""

from __future__ import annotations

import difflib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sandbox_rl.errors import FileProblem, SandboxDead, SandboxFileError
from sandbox_rl.rewards.escapes import swallowed
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS, clip, quote
from sandbox_rl.types import Observation, ToolFailure

MAX_ARGUMENT_CHARS = 1_000_000
"""Longer strings are refused by every tool."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "list_type": "a list",
}


DEAD_TEXT = (
    "The sandbox no longer answers: what ran in it has destroyed it. The episode ends here; "
    "do not kill processes that you did not start."
)

_PROBLEMS = {
    FileProblem.MISSING: "does not exist. Look around with view on a directory or `ls`",
    FileProblem.EXISTS: "exists already",
    FileProblem.NOT_REGULAR: "is not a regular file, or lies below one. Choose another path",
    FileProblem.IS_DIRECTORY: "is a directory. Name a file in it",
    FileProblem.TOO_LARGE: "is too large for the editor. Use execute_bash, for example `sed -n '1,100p'`",
    FileProblem.PERMISSION: "may not be accessed. Take the rights back with `chmod u+rwx`",
    FileProblem.NO_SPACE: "cannot be written: no space is left. Delete files that you do not need",
    FileProblem.BAD_PATH: "is not a usable path. Use a plain one such as /testbed/notes.txt",
    FileProblem.BUSY: "is busy. Stop what uses it and try again",
}


class BadArgumentsError(Exception):
    """The arguments do not fit the tool; the message is written for the model."""


class NotDoneError(Exception):
    """The call cannot be done as the files are; the message is written for the model."""


class ToolArguments(BaseModel):
    """Base of argument models: exact types, no unknown names."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        if isinstance(value, str) and len(value) > MAX_ARGUMENT_CHARS:
            raise ValueError(f"is longer than {MAX_ARGUMENT_CHARS} characters; do it in several calls")
        # json.loads accepts "\\ud800", which no file and no process can be given.
        if isinstance(value, str) and _SURROGATE.search(value):
            raise ValueError("holds half a surrogate pair (\\ud800 to \\udfff), which is no character")
        return value


Arguments = TypeVar("Arguments", bound=ToolArguments)


class CheckedTool(ABC, Generic[Arguments]):
    """A tool that does what valid arguments ask for; every mistake becomes an observation here."""

    name: str
    description: str
    arguments: type[Arguments]
    hint = ""
    """What is said after the mistakes in a call's arguments."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The OpenAI function schema, of the arguments' model."""
        made = self.arguments.model_json_schema()
        parameters = {
            "type": "object",
            "properties": {name: _property(field) for name, field in made["properties"].items()},
            "required": made.get("required", []),
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    @abstractmethod
    async def _run(self, sandbox: Sandbox, given: Arguments, timeout: float) -> Observation:
        """Do it within `timeout` seconds.

        Raises:
            BadArgumentsError, NotDoneError, SandboxCondition: the policy's mistakes.
            SandboxFault: the host side failed.
        """

    async def run(self, sandbox: Sandbox, arguments: Mapping[str, Any], *, timeout: float) -> Observation:
        try:
            return await self._run(sandbox, self._read(arguments), timeout)
        except BadArgumentsError as error:
            text, failure = f"Bad arguments for {self.name}: {error}{self.hint}", ToolFailure.BAD_ARGUMENTS
        except NotDoneError as error:
            text, failure = clip(str(error), MAX_OBSERVATION_CHARS), ToolFailure.FILE
        except SandboxFileError as error:
            text, failure = f"{quote(error.path, 200)} {_PROBLEMS[error.problem]}.", ToolFailure.FILE
        except SandboxDead:
            text, failure = DEAD_TEXT, ToolFailure.SANDBOX_DEAD
        return Observation(text, tool=self.name, failure=failure)

    def _read(self, arguments: Mapping[str, Any]) -> Arguments:
        """Raises BadArgumentsError, naming up to three mistakes."""
        fields = self.arguments.model_fields
        # A model writes null for an optional argument that it leaves out.
        given = {k: v for k, v in arguments.items() if v is not None or k not in fields}
        try:
            return self.arguments.model_validate(given)
        except ValidationError as error:
            known = list(fields)
            mistakes = [_mistake(dict(e), known) for e in error.errors(include_url=False)[:3]]
            takes = f"{self.name} takes {', '.join(known) or 'no arguments'}"
            raise BadArgumentsError(f"{'; '.join(mistakes)}. {takes}.") from None


def _property(field: Mapping[str, Any]) -> dict[str, Any]:
    """What the policy is shown of an argument; null, which stands for one that is left out, is not."""
    known = {**field, **field.get("anyOf", [{}])[0]}
    return {key: known[key] for key in ("type", "enum", "items", "description") if key in known}


def escape_note(arguments: Mapping[str, Any]) -> str | None:
    r"""What to tell the model when JSON has read a backslash of a string as an escape; None if it has not."""
    for name, value in arguments.items():
        if isinstance(value, str) and (found := swallowed(value)) is not None:
            control, rest = found
            return (
                f"Note: {name} arrived with the control character U+{ord(control):04X} before {quote(rest)}: "
                "in a JSON string a backslash and a letter mean that. For a backslash write two."
            )
    return None


def _mistake(error: dict[str, Any], known: list[str]) -> str:
    kind = error["type"]
    where = ".".join(str(part) for part in error["loc"])
    if not where:
        return "a name of an argument is no valid text"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(where[:80], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{quote(where)} is not an argument{hint}"
    if kind == "literal_error":
        return f"{where} must be one of {error['ctx']['expected']}, not {_shown(error['input'])}"
    if kind in _TYPES:
        return f"{where} must be {_TYPES[kind]}, not {_shown(error['input'])}"
    if kind == "value_error":
        return f"{where} {error['ctx']['error']}"
    return f"{where}: {error['msg']}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"
