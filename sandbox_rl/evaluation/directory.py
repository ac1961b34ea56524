"""The directory of an evaluation.

::

    OUTPUT/
      evaluation.json   what makes this measurement itself; `--resume` compares it
      journal/          every episode, turn by turn
      results.json      see docs/evaluation.md
      results.md        the same as a page
      lock              who is at work on it
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.page import page
from sandbox_rl.evaluation.plan import FORMAT, check_same
from sandbox_rl.evaluation.results import Results
from sandbox_rl.lock import alone
from sandbox_rl.outputs import write_atomically


@dataclass(frozen=True, slots=True)
class EvaluationDirectory:
    """The paths of one evaluation."""

    path: Path

    @property
    def journal(self) -> Path:
        """Of its episodes."""
        return self.path / "journal"

    def stored(self, *, resume: bool) -> dict[str, Any] | None:
        """The identity of the evaluation to go on with; None for a new one.

        Raises:
            ConfigError: a new one is there already, or one to be resumed is not, or is of another version.
        """
        if not resume:
            if os.path.lexists(self.path):
                raise ConfigError(
                    f"--output: {self.path} exists; go on with it by --resume, or name another directory"
                )
            return None
        path = self.path / "evaluation.json"
        try:
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(stored, dict):
                raise ValueError("no object")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--resume: {path} cannot be read ({error}), expected the directory of an earlier "
                "evaluation; leave --resume out to start one"
            ) from error
        if stored.get("format") != FORMAT:
            raise ConfigError(
                f"--resume: {path} has format {stored.get('format')}, expected {FORMAT}; another version has "
                "written it: go on with that version, or start another with a new --output"
            )
        return stored

    @contextmanager
    def opened(self, identity: Mapping[str, Any], stored: Mapping[str, Any] | None) -> Iterator[None]:
        """Make it, or go on with it, and keep other processes away until the block is left.

        A new one that an exception leaves without an episode is removed: the next try may have the name.

        Args:
            stored: what `stored` gave.

        Raises:
            ConfigError: what is stored is another measurement, or another process is at work on it.
        """
        new, new_parent = stored is None, not self.path.parent.exists()
        if stored is not None:
            check_same(stored, identity, str(self.path))
        else:
            self.path.mkdir(parents=True)
            write_atomically(self.path / "evaluation.json", json.dumps(identity, indent=1) + "\n")
        try:
            with alone(self.path, "--output"):  # two at one journal would run everything twice
                yield
        except BaseException:
            if new and not any(path.stat().st_size for path in self.journal.glob("*.jsonl")):
                shutil.rmtree(self.path)
                if new_parent:
                    with suppress(OSError):  # somebody else uses it by now
                        self.path.parent.rmdir()
            raise

    def write(self, results: Results) -> None:
        """Write `results.json` and `results.md`, each whole or not at all."""
        write_atomically(self.path / "results.json", json.dumps(results.to_json(), indent=1) + "\n")
        write_atomically(self.path / "results.md", page([results]))
