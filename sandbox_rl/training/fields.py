"""Pass-through blocks of a recipe: fields of TRL's own config classes, refused with a clear line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

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
    try:
        return cls(**fields)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{block}: {cls.__name__} refuses these values: {error}") from error
