"""What all commands share: their arguments, exit codes, and who of several processes speaks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sandbox_rl.config.recipe import Recipe
    from sandbox_rl.display import Display

DIFFERS = 1
"""Exit code: a check failed, or what was recorded and what has come out now are not the same."""
DONE_IN_PART = 3
"""Exit code of a command that left something undone which `--resume` can do, and of our failures."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, e.g. runs/quickstart.")]
RecipePath = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe of the package: quickstart."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Replace values of the recipe: grpo.learning_rate=1e-6."),
]
BaseUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="OpenAI-compatible endpoint: http://HOST:PORT/v1.")
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Environment variable with its key; else OPENAI_API_KEY if set."),
]


class Interrupted(SystemExit):
    """Leave with the exit code of an interrupt; everything about it has been said."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


def open_recipe(path: Path, overrides: list[str] | None) -> tuple[Recipe, Path]:
    """A recipe, and what its relative paths are relative to.

    Raises:
        ConfigError: what is wrong with it.
    """
    from sandbox_rl.config.load import load_recipe
    from sandbox_rl.config.shipped import find_recipe

    path = find_recipe(path)
    return load_recipe(path, overrides or ()), path.resolve().parent


def first_process() -> bool:
    """Whether this process prints for all those of a launcher."""
    return os.environ.get("RANK", "0") == "0"


def terminal(*, json: bool = False) -> Display:
    """Where news go: the others of a launcher's processes measure the same and say nothing.

    Args:
        json: as lines of JSON, for a program.
    """
    from sandbox_rl.display import Silent
    from sandbox_rl.terminal import JsonLines, Terminal

    if not first_process():
        return Silent()
    return JsonLines() if json else Terminal()
