"""A run's directory: everything a person wants to know about the run can be computed from it alone.

::

    runs/<name>/
      recipe.yaml      the resolved recipe, with the changes that --resume made as comments
      tokenizer/       what the ids in the journal say
      machine.json     versions, devices, which sandbox runs and what it lacks
      tasks.json       ids and domains of the training tasks, in the order of the data
      history.jsonl    when it was started, resumed from which step, changed in what, and finished
      replaced/        metrics, alarms and the ledger's lines of updates that were done again after a --resume
      metrics.jsonl    one line per logged step
      ledger.jsonl     one line per finished update: how each of its samples ended
      compositions.jsonl  what each update of an asynchronous run was composed of
      journal/         every episode, turn by turn
      trained/         the trainer's log-prob and the gradient of each token in a loss
      results.json     held-out results
      checkpoints/     Hugging Face checkpoints, each with its manifest (complete.json)
      status.json      what it is doing, while it does anything
      lock             who is at work on it
      logs/            TensorBoard
      export/          the exported model
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sandbox_rl.errors import ConfigError
from sandbox_rl.outputs import write_atomically


class _Below:
    """An attribute that is a path below the run's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunDirectory, kind: type[RunDirectory] | None = None) -> Path:
        return run.path / self._name


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one run."""

    path: Path
    recipe = _Below("recipe.yaml")
    """The resolved recipe."""
    tasks = _Below("tasks.json")
    """Ids of the training tasks, in the order of the data."""
    journal = _Below("journal")
    """Of all episodes."""
    metrics = _Below("metrics.jsonl")
    """One JSON line per logged step."""
    ledger = _Below("ledger.jsonl")
    """One JSON line per finished update."""
    checkpoints = _Below("checkpoints")
    """Where the trainer saves."""
    export = _Below("export")
    """The exported model."""

    @classmethod
    def new(cls, output_dir: Path, name: str) -> RunDirectory:
        """A directory that no run uses yet: `<name>`, else `<name>-2`, `<name>-3` …"""
        number = 1
        while True:
            path = output_dir / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not path.parent.is_dir():
                    raise
                number += 1
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                raise ConfigError(
                    f"output_dir: {str(output_dir)!r}, but {path} cannot be made ({error.strerror}); name "
                    "another directory"
                ) from error
            else:
                return cls(path)

    @classmethod
    def latest(cls, output_dir: Path, name: str) -> RunDirectory:
        """The newest directory of that name.

        Raises:
            ConfigError: there is none.
        """
        found = _numbered(output_dir, name)
        if not found:
            raise ConfigError(
                f"--resume: {output_dir / name} does not exist, expected the directory of an earlier run; "
                "leave --resume out to start one"
            )
        return cls(output_dir / (name if max(found) == 1 else f"{name}-{max(found)}"))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write `name` below the run's directory, whole or not at all."""
        write_atomically(self.path / name, json.dumps(value, indent=2, default=str) + "\n")


def find_run(output_dir: Path, name: str, which: str) -> RunDirectory:
    """The newest run of that name, or the one that `which` names: a directory, or a name below `output_dir`.

    Raises:
        ConfigError: there is none.
    """
    if not which:
        return RunDirectory.latest(output_dir, name)
    for path in (Path(which), output_dir / which):
        if path.is_dir() and any(
            (path / file).exists() for file in ("recipe.yaml", "history.jsonl", "checkpoints")
        ):
            return RunDirectory(path)
    known = sorted(p.parent.name for p in output_dir.glob("*/recipe.yaml"))
    raise ConfigError(
        f"--resume {which!r}: neither a run's directory nor one below {output_dir}, expected one of "
        f"{', '.join(known) or 'none, there are no runs'}; name one, or leave the name out for the newest"
    )


def set_aside(path: Path) -> None:
    """Give what lies at `path`, if anything does, a name that is free beside it: `<name>.replaced-1`, …"""
    if path.exists():
        names = (path.with_name(f"{path.name}.replaced-{number}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def _numbered(output_dir: Path, name: str) -> list[int]:
    numbers = [1] if (output_dir / name).is_dir() else []
    if output_dir.is_dir():
        for path in output_dir.glob(f"{name}-*"):
            suffix = path.name[len(name) + 1 :]
            if suffix.isdigit() and path.is_dir():
                numbers.append(int(suffix))
    return numbers
