"""Recipes that come along, named without their file wherever a recipe is named."""

from __future__ import annotations

from pathlib import Path

from sandbox_rl.config.suite import find_suite
from sandbox_rl.errors import ConfigError

__all__ = ["find_recipe", "find_target"]

# In a wheel the recipes lie inside the package, in a checkout beside it.
_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


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
    raise ConfigError(
        f"recipe {str(name)!r}: no such file, expected one, or a name that comes along: {', '.join(_names())}"
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
    found = (folder / f"{name}.yaml" for folder in _FOLDERS)
    return None if Path(name).is_absolute() else next((file for file in found if file.is_file()), None)


def _names() -> list[str]:
    folder = next((f for f in _FOLDERS if f.is_dir()), _PACKAGE)
    names = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
    return [name for name in names if not name.startswith("prompts")]
