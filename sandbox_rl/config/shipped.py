"""Recipes that come along, named without their file wherever a recipe is named."""

from __future__ import annotations

from pathlib import Path

from sandbox_rl.config.suite import find_suite
from sandbox_rl.errors import ConfigError
from sandbox_rl.registry import shipped


def find_recipe(name: str | Path) -> Path:
    """The file of that path, else the recipe of that name that comes along, such as `quickstart`.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.suffix or path.exists():
        return path
    if (found := _shipped(name)) is not None:
        return found
    folder = shipped("recipes")
    known = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
    raise ConfigError(
        f"recipe {str(name)!r}: no such file, expected one, or a name that comes along: "
        f"{', '.join(name for name in known if not name.startswith('prompts'))}"
    )


def find_target(name: str | Path) -> Path:
    """What an evaluation is of: a file, a suite or a recipe that comes along.

    Raises:
        ConfigError: there is none.
    """
    if not Path(name).is_file() and (found := _shipped(name)) is not None:
        return found
    return find_suite(name)


def _shipped(name: str | Path) -> Path | None:
    found = shipped(f"recipes/{name}.yaml")
    return found if found.is_file() and not Path(name).is_absolute() else None
