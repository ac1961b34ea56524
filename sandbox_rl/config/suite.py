"""A suite in one value: what is evaluated and under which budgets. A recipe without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from sandbox_rl.config.load import load_settings, read_source
from sandbox_rl.config.run import RunSettings
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.sources import PartSettings
from sandbox_rl.policies.base import Sampling
from sandbox_rl.registry import shipped


class Suite(RunSettings):
    """Everything an evaluation depends on, but the model: `--model` replaces the path of its block."""

    name: str = "suite"
    parts: tuple[PartSettings, ...] = Field(min_length=1)
    """At least one."""
    limit: int | None = Field(None, ge=1)
    """At most so many tasks of each part, for trying things out."""
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20)
    """How turns are sampled."""

    @property
    def sources(self) -> Sequence[object]:
        """Where tasks come from."""
        return [part.source for part in self.parts]

    @model_validator(mode="after")
    def _names_differ(self) -> Suite:
        names = [part.name for part in self.parts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two parts are named {twice[0]!r}; give each its own name")
        return self


def load_suite(path: Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite; its relative paths are relative to its own directory.

    Raises:
        ConfigError: one line naming file and line (or the override), key, value and what was expected.
    """
    suite = load_settings(Suite, path, overrides)
    base = path.resolve().parent
    parts = tuple(part.model_copy(update={"source": part.source.anchored(base)}) for part in suite.parts)
    return suite.model_copy(
        update={
            "parts": parts,
            "prompts": tuple(str(base / directory) for directory in suite.prompts),
            "modules": tuple(str(base / directory) for directory in suite.modules),
        }
    )


def is_suite(path: Path) -> bool:
    """Whether a file is a suite and not a recipe.

    Raises:
        ConfigError: it cannot be read.
    """
    return "parts" in read_source(path).values


def find_suite(name: str | Path) -> Path:
    """The file of that path, else the shipped suite of that name, such as `offline`.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = shipped("configs/suites")
    if path.name == str(name) and (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise ConfigError(
        f"{str(name)!r}: no such file, expected a recipe, a suite, or one of the shipped suites "
        f"({', '.join(known)})"
    )
