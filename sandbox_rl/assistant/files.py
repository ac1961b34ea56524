"""The user's files on their way into a sandbox, and results on their way out.

What goes in is read once, never followed, never changed. Names and contents of what comes out are a
stranger's: every component is opened relative to the directory above it without following links, and every
file is created exclusively, so nothing outside the output directory is touched and nothing in it is replaced.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sandbox_rl import __version__
from sandbox_rl.errors import DataError
from sandbox_rl.journal import rollout_record
from sandbox_rl.tasks.names import misleading, problem_of_name
from sandbox_rl.types import Rollout

MAX_FILES = 10_000
MAX_DEPTH = 32
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class InputFiles:
    """What goes in (relative POSIX path → content), and what does not ("path: reason")."""

    files: dict[str, bytes]
    skipped: tuple[str, ...] = ()


def read_input(path: Path, *, max_bytes: int) -> InputFiles:
    """The regular files below a directory, or one file.

    Links are not followed, neither to files nor to directories; links, sockets, pipes and devices are
    skipped. So is everything whose name begins with a dot: keys and caches live there.

    Raises:
        DataError: not there, not readable, more than `max_bytes` together or 10,000 files.
    """
    try:
        mode = path.stat().st_mode  # the path that the user named may itself be a link
        found = _walk(path) if stat.S_ISDIR(mode) else iter([(path.name, path, _why_not(mode))])
        files: dict[str, bytes] = {}
        skipped: list[str] = []
        left = max_bytes
        for name, place, reason in found:
            reason = reason or problem_of_name(name) or ""
            data = b"" if reason else _read(place, left, follow=place is path)
            if reason or data is None:
                skipped.append(f"{name}: {reason or 'no longer a regular file'}")
                continue
            files[name] = data
            left -= len(data)
            if len(files) > MAX_FILES:
                raise DataError(f"--input {path}: more than {MAX_FILES} files; give a smaller directory")
    except _TooMuchError:
        raise DataError(
            f"--input {path}: more than {max_bytes / (1 << 20):g} MiB together; give a smaller directory, or "
            "raise max_input_mb (and sandbox.limits.disk_mb)"
        ) from None
    except OSError as error:
        raise DataError(
            f"--input {path}: {error.filename or path} cannot be read ({error.strerror or error}); give "
            "files that you may read"
        ) from error
    return InputFiles(files, tuple(sorted(skipped)))


class _TooMuchError(Exception):
    """The files exceed their limit."""


def _walk(root: Path) -> Iterator[tuple[str, Path, str]]:
    """(relative name, path, why it is left out or "") of everything that is no directory, sorted."""
    waiting = [""]
    while waiting:
        here = waiting.pop()
        deeper = []
        with os.scandir(root / here) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                name = f"{here}/{entry.name}" if here else entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                if entry.name.startswith("."):
                    yield name, root / name, "hidden"
                elif not stat.S_ISDIR(mode):
                    yield name, root / name, _why_not(mode)
                elif name.count("/") >= MAX_DEPTH:
                    yield name, root / name, f"more than {MAX_DEPTH} directories deep"
                else:
                    deeper.append(name)
        waiting += reversed(deeper)


def _why_not(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    return "" if stat.S_ISREG(mode) else "not a regular file"


def _read(path: Path, limit: int, *, follow: bool) -> bytes | None:
    """Content of a regular file; None if it is something else by now.

    Raises:
        _TooMuchError: more than `limit` bytes.
        OSError: it cannot be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _TooMuchError
    return data


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
    (`tasks.names.misleading`) are left out, and so is what exists already. No file is made executable.

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
            reason = reason or misleading(name)
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
