"""What became of a run's directory: starts, changes of its recipe, results; and records that were replaced.

A run that goes on from a checkpoint does the updates after it again. Metrics and alarms of them move to
`replaced/`, so that each step stands once in the run's files and nothing is lost. The journal keeps its
episodes and names those that are replaced; what is sampled again has its attempt in its id.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.results import Results
from sandbox_rl.outputs import append_line, check_format
from sandbox_rl.runs.directory import RunDirectory

FILE = "history.jsonl"
FORMAT = 1
"""Of a run's directory: what its first start wrote into it, and what a later one can go on with."""


@dataclass(frozen=True, slots=True)
class History:
    """The events of a run so far, in order; each has `event`, `step` (the updates it had then) and `time`."""

    run: RunDirectory
    events: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, run: RunDirectory) -> History:
        """Lines that a kill has torn are left out."""
        events = []
        if (run.path / FILE).exists():
            for line in (run.path / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    if isinstance(event := json.loads(line), dict) and "event" in event:
                        events.append(event)
        return cls(run, tuple(events))

    def with_event(self, event: str, step: int, **fields: Any) -> History:
        """The history with one more event, which is on the disk then."""
        new = {"event": event, "step": step, "time": round(time.time(), 3), **fields}
        append_line(self.run.path / FILE, json.dumps(new).encode(), to_disk=True)
        return History(self.run, (*self.events, new))

    def check(self, what: str = "--resume") -> None:
        """Whether this is the directory of a run that this version can go on with.

        Args:
            what: the option or command that asks, for the message.

        Raises:
            ConfigError: it is not.
        """
        path = self.run.path
        for file in (path / FILE, self.run.recipe):
            if not file.is_file():
                raise ConfigError(
                    f"{what}: {path} has no {file.name}, expected what a run writes as it starts; it was "
                    "killed before that, or is no run's: move it away, and start without --resume"
                )
        if not any(e.get("event") == "started" for e in self.events):
            raise ConfigError(
                f"{what}: {path / FILE} does not say how the run was started, expected that in its first "
                "line; it is damaged, or of something else: start a run of its own"
            )
        found = self.started_with("format")
        if found != FORMAT:
            raise ConfigError(
                f"{what}: {path} has format {found}, expected {FORMAT}; another version of sandbox-rl "
                "has written it: go on with that version, or start a run of its own"
            )

    @property
    def starts(self) -> int:
        """How often the run was started, resumed starts included."""
        return sum(e["event"] in ("started", "resumed") for e in self.events)

    @property
    def finished_at(self) -> int | None:
        """The updates that it had when it was done; None while it is not."""
        last = next((e for e in reversed(self.events) if e["event"] != "changed"), None)
        return int(last["step"]) if last is not None and last["event"] == "finished" else None

    def started_with(self, name: str) -> Any:
        """A field of the first start; None where that did not write it."""
        first = next((e for e in self.events if e["event"] == "started"), {})
        return first.get(name)

    def again(self, step: int) -> int:
        """How often what belongs to a step was sampled before."""
        return sum(
            e["event"] == "resumed" and e["step"] <= step <= e.get("replaced_to", -1) for e in self.events
        )

    @property
    def changes(self) -> Iterable[str]:
        """One line for each field of the recipe that was changed."""
        for e in self.events:
            if e["event"] == "changed":
                old, new = json.dumps(e["from"]), json.dumps(e["to"])
                yield f"changed at step {e['step']}: {e['field']}: {old} -> {new}"


def recorded_run(path: Path, overrides: Sequence[str] = ()) -> tuple[RunDirectory, Recipe]:
    """The run of a directory, and its own recipe with these overrides.

    Raises:
        UserError: there is no run, a newer version has written it, or an override does not fit.
    """
    run = RunDirectory(path)
    if not run.recipe.is_file():
        raise ConfigError(
            f"{path}: no run here (no recipe.yaml), expected a directory such as runs/quickstart"
        )
    refuse_newer(run)
    return run, load_recipe(run.recipe, overrides)


def refuse_newer(run: RunDirectory) -> None:
    """For whoever only reads.

    Raises:
        DataError: the run was started by a later version.
    """
    check_format(run.path, History.read(run).started_with("format"), FORMAT)


def step_of_line(line: bytes) -> int | None:
    """The step of a line of ours, which stands at its beginning; None for any other."""
    found = re.search(rb'"step": ?(\d+)', line[:400])
    return int(found.group(1)) if found and line.endswith(b"\n") else None


def set_lines_aside(path: Path, replaced: Callable[[bytes], bool], aside: Path) -> None:
    """Move the lines that are replaced from one file to another, whole or not at all.

    A kill in between leaves them in both; the next call moves them again, so none is ever lost.
    """
    if not path.exists():
        return
    moved = False
    kept_path, aside_path = path.with_name(f".{path.name}.kept"), path.with_name(f".{path.name}.aside")
    try:
        with path.open("rb") as lines, kept_path.open("wb") as kept, aside_path.open("wb") as out:
            for line in lines:
                if replaced(line):
                    out.write(line)
                    moved = True
                else:
                    kept.write(line)
            for file in (kept, out):
                file.flush()
                os.fsync(file.fileno())
        if moved:
            aside.parent.mkdir(exist_ok=True)
            os.replace(aside_path, aside)
            os.replace(kept_path, path)
    finally:
        kept_path.unlink(missing_ok=True)
        aside_path.unlink(missing_ok=True)


def write_results(run: RunDirectory, results: Mapping[str, Results | None]) -> None:
    """Write it anew: when ("before" or "after") → results, as `sandbox-rl eval` writes its own."""
    run.write_json("results.json", {when: r.to_json() for when, r in results.items() if r is not None})


def known_results(run: RunDirectory) -> dict[str, Results]:
    """When → results, as far as an earlier start of this run has written them.

    Raises:
        ConfigError: the file was written by another version.
    """
    path = run.path / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {when: Results.from_json(found[when]) for when in ("before", "after") if when in found}
    except OSError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not what this version writes ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "move it away to go on without it"
        ) from error


def card_lines(results: Mapping[str, Results | None]) -> dict[str, str]:
    """Metric → value for a model card."""
    return {
        f"held-out accuracy {when} training": r.headline() for when, r in results.items() if r is not None
    }
