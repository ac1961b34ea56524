"""How a name in a recipe becomes an object: one rule for everything that can be one's own.

A name is one of ours, one that an installed package offers (an entry point), or an import path
`package.module:thing`. A module of an import path is found where Python finds it, and beside the recipe.
So something of one's own is one file of one's own; nothing here has to know of it. Nothing is imported before
it is asked for.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from sandbox_rl.errors import ConfigError

T = TypeVar("T")


@lru_cache(maxsize=1)
def _all_entry_points(
    path: tuple[str, ...],
) -> Any:  # another type before Python 3.12, with the same `select`
    """Of every package on `path`, which is Python's own. Looking for them reads all that is installed."""
    return metadata.entry_points()


def entry_points(group: str) -> metadata.EntryPoints:
    """What installed packages offer to a group."""
    found: metadata.EntryPoints = _all_entry_points(tuple(sys.path)).select(group=group)
    return found


def shipped(path: str) -> Path:
    """A file or folder that comes along, such as `configs/suites`; it need not be there.

    In a wheel it lies inside the package, in a checkout beside it.
    """
    package = Path(__file__).parent
    return package / path if (package / path).exists() else package.parent / path


def look_beside(directory: Path) -> None:
    """Let import paths name modules of this directory (a recipe's), after everything installed."""
    entry = str(directory.resolve())
    if entry not in sys.path:
        sys.path.append(entry)
        importlib.invalidate_caches()


def import_thing(path: str) -> Any:
    """What `package.module:thing` names.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of one's own can fail in any way
        raise ConfigError(
            f"{path!r} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}), expected "
            "package.module:name of an installed package, beside the recipe, or on PYTHONPATH"
        ) from error
    return found


class Registry(Generic[T]):
    """The things of one kind by their names.

    Args:
        kind: what one of them is called in messages, such as "sandbox backend".
        ours: name → the thing, or the import path of it.
        group: the group of entry points by which installed packages add to it; "" where only ours are known.
        check: whether something imported is of this kind.
        expected: what `check` wants, in words, such as "a function (answer, task) -> float".
        special: further names that are known but mean no object.
    """

    def __init__(
        self,
        kind: str,
        ours: Mapping[str, str | T],
        *,
        group: str = "",
        check: Callable[[Any], bool] = callable,
        expected: str = "a function",
        special: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self.group = group
        self.ours: Mapping[str, str | T] = dict(ours)
        self._check = check
        self._expected = expected
        self._special = special

    def with_more(self, ours: Mapping[str, str | T], *, kind: str = "") -> Registry[T]:
        """A registry that knows these as well."""
        more = copy.copy(self)
        more.kind, more.ours = kind or self.kind, {**self.ours, **ours}
        return more

    @property
    def installed(self) -> Mapping[str, str]:
        """Name → import path, as installed packages offer them; ours cannot be replaced."""
        return {entry.name: entry.value for entry in entry_points(group=self.group)} if self.group else {}

    @property
    def names(self) -> tuple[str, ...]:
        """All short names."""
        return tuple(dict.fromkeys((*self.ours, *self._special, *self.installed)))

    def require(self, name: str) -> None:
        """See that a name can mean something, without importing anything.

        Raises:
            ConfigError: it is neither known nor an import path; in words that follow the name.
        """
        if name in self.names or (self.group and ":" in name):
            return
        near = get_close_matches(name, self.names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(map(repr, self.names))
        own = ", or package.module:name of your own" if self.group else ""
        raise ConfigError(f"{self.kind} {name!r} is unknown: {hint}expected one of {known}{own}")

    def find(self, name: str) -> T:
        """What the name means.

        Raises:
            ConfigError: the name is unknown, cannot be imported, or names something of another kind.
        """
        self.require(name)
        known = self.ours[name] if name in self.ours else self.installed.get(name, name)
        if not isinstance(known, str):
            return known
        try:
            found = import_thing(known)
        except ConfigError as error:
            raise ConfigError(f"{self.kind} {error}") from error
        if not self._check(found):
            kind = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
            raise ConfigError(f"{self.kind} {name!r} is {kind}, expected {self._expected}")
        return found  # type: ignore[no-any-return]
