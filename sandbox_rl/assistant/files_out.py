"""Results on their way out of a sandbox: names and contents come from a stranger.

Every component is opened relative to the directory above it without following links, and every file is
created exclusively, so nothing outside the output directory is touched and nothing in it is replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sandbox_rl import __version__
from sandbox_rl.errors import DataError
from sandbox_rl.journal import rollout_record
from sandbox_rl.tasks.names import deception, problem_of_name
from sandbox_rl.types import Rollout

__all__ = ["SavedFiles", "save_files", "save_trajectory", "without_inputs"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class SavedFiles:
    """Names that were written, and what was not ("name: reason")."""

    written: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def without_inputs(
    files: Mapping[str, bytes], inputs: Mapping[str, bytes], *, below: str
) -> dict[str, bytes]:
    """`files` without the unchanged inputs, which lie in the directory `below`."""
    return {
        name: data
        for name, data in files.items()
        if not (name.startswith(f"{below}/") and inputs.get(name.removeprefix(f"{below}/")) == data)
    }


def save_files(directory: Path, files: Mapping[str, bytes]) -> SavedFiles:
    """Write files (relative POSIX path → content) below an existing directory.

    Names that are absolute, climb, hold control characters, begin with a dot or deceive
    (`tasks.names.deception`) are left out, and so is what exists already. No file is made executable.

    Raises:
        DataError: the directory cannot be written to at all, or there is no space left.
    """
    written: list[str] = []
    left_out: list[str] = []
    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        for name, data in sorted(files.items()):
            reason = problem_of_name(name)
            if reason is None and any(part.startswith(".") for part in name.split("/")):
                reason = "is hidden"
            reason = reason or deception(name)
            if reason is None:
                reason = _save(top, name, data)
            if reason is None:
                written.append(name)
            else:
                left_out.append(f"{name}: {reason}")
    except OSError as error:
        raise _unwritable(directory, error) from error
    finally:
        os.close(top)
    return SavedFiles(tuple(written), tuple(left_out))


def save_trajectory(directory: Path, rollout: Rollout, **context: Any) -> str:
    """Write the conversation to `trajectory.json`, else `trajectory-2.json` …; returns the name.

    One JSON object as `rollout_record` makes it (`journal.trajectory_from_record` reads it), with the
    question, the messages of a chat endpoint, and `context`.

    Raises:
        DataError: the directory cannot be written to.
    """
    record = rollout_record(rollout, version=__version__, question=rollout.task.prompt, **context)
    text = json.dumps(record, indent=1, default=str) + "\n"
    for number in count(1):
        path = directory / ("trajectory.json" if number == 1 else f"trajectory-{number}.json")
        try:
            with open(os.open(path, _NEW_FILE, 0o644), "w", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(directory, error) from error
        return path.name
    raise AssertionError("there are numbers enough")


def _unwritable(directory: Path, error: OSError) -> DataError:
    return DataError(
        f"--output {directory}: cannot be written to ({error.strerror or error}); give a directory of yours "
        "with free space"
    )


def _save(top: int, name: str, data: bytes) -> str | None:
    """Why a file was not written; None if it was. Raises OSError where no file could be."""
    *parents, last = name.split("/")
    here = os.dup(top)
    try:
        for part in parents:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            deeper = os.open(part, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = deeper
        with os.fdopen(os.open(last, _NEW_FILE, 0o644, dir_fd=here), "wb") as file:
            file.write(data)
    except FileExistsError:
        return "exists already, kept as it is"
    except NotADirectoryError:
        return "a file or a link stands where its directory would be"
    finally:
        os.close(here)
    return None
