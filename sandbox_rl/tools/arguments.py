"""Checking a call's arguments, with messages that tell the model what to write instead."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sandbox_rl.rewards.escapes import swallowed
from sandbox_rl.tools.text import quote
from sandbox_rl.types import Observation, ToolFailure

__all__ = ["BadArgumentsError", "ToolArguments", "bad_arguments", "escape_note", "read_arguments"]

MAX_ARGUMENT_CHARS = 1_000_000
"""Longer strings are refused by every tool."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "list_type": "a list",
}


class BadArgumentsError(Exception):
    """The arguments do not fit the tool; the message is written for the model."""


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


def read_arguments(model: type[Arguments], tool: str, arguments: Mapping[str, Any]) -> Arguments:
    """The arguments as `model`.

    Raises:
        BadArgumentsError: naming up to three mistakes.
    """
    # A model writes null for an optional argument that it leaves out.
    given = {k: v for k, v in arguments.items() if v is not None or k not in model.model_fields}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        known = list(model.model_fields)
        mistakes = [_mistake(dict(e), known) for e in error.errors(include_url=False)[:3]]
        takes = f"{tool} takes {', '.join(known)}" if known else f"{tool} takes no arguments"
        raise BadArgumentsError(f"{'; '.join(mistakes)}. {takes}.") from None


def bad_arguments(tool: str, error: BadArgumentsError) -> Observation:
    """What to tell the model."""
    return Observation(f"Bad arguments for {tool}: {error}", tool=tool, failure=ToolFailure.BAD_ARGUMENTS)


def escape_note(arguments: Mapping[str, Any]) -> str | None:
    r"""What to tell the model when JSON has read a backslash of a string as an escape; None if it has not."""
    for name, value in arguments.items():
        found = swallowed(value) if isinstance(value, str) else None
        if found is not None:
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
        near = difflib.get_close_matches(where, known, n=1)
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
