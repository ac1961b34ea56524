"""Pass-through blocks of a recipe: fields of TRL's own config classes, refused with a clear line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sandbox_rl.errors import ConfigError

__all__ = ["checked_fields"]


def checked_fields(cls: Any, block: str, fields: Mapping[str, Any], known: Collection[str]) -> Any:
    """An instance of the config class `cls` from the recipe's `block`.

    Raises:
        ConfigError: an unknown field (the nearest known one is named), or values that `cls` refuses.
    """
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key '{block}.{name}': {cls.__name__} has no such field{hint}")
    for name, value in fields.items():
        _check_type(cls, block, name, value)
    try:
        return cls(**fields)
    except (ValueError, TypeError, NotImplementedError) as error:
        named = [
            name
            for name, value in fields.items()
            if isinstance(value, str) and str(error).startswith(f"{value} is")
        ]
        where = f"{block}.{named[0]}: {fields[named[0]]!r}, but" if named else f"{block}:"
        raise ConfigError(f"{where} {cls.__name__} refuses these values: {error}") from error


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _check_type(cls: Any, block: str, name: str, value: Any) -> None:
    """Dataclasses take any value for any field; a number that is text fails only deep inside training."""
    simple = _simple_types(_hints(cls).get(name, Any))
    if not simple or (
        isinstance(value, tuple(simple)) and not (isinstance(value, bool) and bool not in simple)
    ):
        return
    if float in simple and isinstance(value, int) and not isinstance(value, bool):
        return
    expected = " or ".join(sorted(kind.__name__ for kind in simple if kind is not type(None)))
    raise ConfigError(f"key '{block}.{name}': {value!r}, expected {expected}")


def _simple_types(hint: Any) -> list[type]:
    """The plain types that a hint admits; empty where it admits more than those."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = (bool, int, float, str, type(None))
    return [part for part in parts if part in plain] if all(part in plain for part in parts) else []
