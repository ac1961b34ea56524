"""The user's files on their way into a sandbox: read once, never followed, never changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.errors import DataError
from sandbox_rl.tasks.names import problem_of_name

__all__ = ["InputFiles", "read_input"]

MAX_FILES = 10_000
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class InputFiles:
    """What goes in (relative POSIX path → content), and what does not ("path: reason")."""

    files: dict[str, bytes]
    skipped: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(map(len, self.files.values()))


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
