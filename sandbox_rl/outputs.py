"""The one rule for everything that a command writes: what is there already stays as it is.

A target that exists is refused, also as a link to nowhere. What is written appears whole or not at all: it is
made in a hidden directory beside its place, which is removed whatever happens, and gets its name only when it
is complete. Only files in a directory that we have made ourselves (a run's) are replaced: `write_atomically`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandbox_rl.errors import ConfigError, DataError, ModelError


def check_format(path: Path, found: object, known: int) -> None:
    """For whoever reads records: those of a later format may mean something else.

    Raises:
        DataError: `found` is the number of one.
    """
    if isinstance(found, int) and found > known:
        raise DataError(
            f"{path}: format {found}, expected at most {known}; a newer version has written it: update "
            "sandbox_rl"
        )


def check_new(target: Path, what: str) -> None:
    """Whether `target` can be made there without touching anything; makes nothing.

    Args:
        what: the option or key that named it, for the message.

    Raises:
        ConfigError: it exists, or its place is no directory or may not be written to.
    """
    if os.path.lexists(target):
        kind = "a link" if target.is_symlink() else "a directory" if target.is_dir() else "a file"
        raise ConfigError(
            f"{what}: {target} exists already ({kind}), expected a new name; nothing is ever overwritten: "
            "choose another, or move it away first"
        )
    check_place(target.parent, what)


def check_place(directory: Path, what: str) -> None:
    """Whether things can be made in `directory`, which need not exist yet; makes nothing.

    Raises:
        ConfigError: what exists of the path is a file or may not be written to.
    """
    nearest = directory.absolute()
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        kind = "a link to nothing" if nearest.is_symlink() and not nearest.exists() else "a file"
        raise ConfigError(
            f"{what}: {str(directory)!r}, but {nearest} is {kind}, expected a directory; name another"
        )
    read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
    if read_only or not os.access(nearest, os.W_OK | os.X_OK):
        why = "lies on a read-only file system" if read_only else "may not be written to by this user"
        raise ConfigError(
            f"{what}: {str(directory)!r}, but {nearest} {why}; name another directory, or change its rights"
        )


@contextmanager
def new_directory(target: Path, what: str) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when the block ends well and vanishes when it does not.

    Its files get the rights that the user's mask gives, whatever wrote them.

    Raises:
        ConfigError: as `check_new`, or `target` came into being meanwhile.
    """
    check_new(target, what)
    with _beside(target, what) as partial:
        yield partial
        _plain_rights(partial)
        check_new(target, what)
        os.rename(partial, target)


@contextmanager
def new_files(directory: Path, names: Iterable[str], what: str) -> Iterator[Path]:
    """A directory in which to write files of these names; they move to `directory` all together at the end.

    Raises:
        ConfigError: one of them exists there, or came into being meanwhile.
    """
    names = tuple(names)
    for name in names:
        check_new(directory / name, what)
    with _beside(directory / names[0], what) as partial:
        yield partial
        _plain_rights(partial)
        placed: list[Path] = []
        try:
            for name in names:
                _move(partial / name, directory / name)
                placed.append(directory / name)
        except FileExistsError:
            for path in placed:
                path.unlink()
            check_new(directory / names[len(placed)], what)
            raise


def write_new(path: Path, text: str, what: str) -> None:
    """Write a file that must not exist yet, whole or not at all.

    Raises:
        ConfigError: as `check_new`.
    """
    with new_files(path.parent, [path.name], what) as partial:
        (partial / path.name).write_text(text, encoding="utf-8")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file of our own so that a kill at any instant or a full disk leaves the old or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: bytes, *, to_disk: bool = False) -> None:
    """Add a line to a file of our own, on a line of its own.

    What a kill or a full disk has left of the line before must not take this one with it.

    Args:
        to_disk: return only once it would survive the machine.
    """
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")
        if to_disk:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def restoring(path: Path, what: str, advice: str) -> Iterator[Any]:
    """The JSON of a checkpoint's file; where the block fails on what it says, the file is none of ours.

    Args:
        what: it should hold, for the message.
        advice: how to go on without, likewise.

    Raises:
        ModelError: it is missing, or not one of ours.
    """
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"--resume: {path} does not hold {what} ({type(error).__name__}); {advice}"
        ) from error


@contextmanager
def _beside(target: Path, what: str) -> Iterator[Path]:
    """A hidden directory beside `target`; it and the parents made for it go if the block fails."""
    made: list[Path] = []
    parent = target.parent.absolute()
    while not parent.exists():
        made.append(parent)
        parent = parent.parent
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(
                f"{what}: nothing can be made in {target.parent} ({error.strerror}); name another directory"
            ) from error
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except BaseException:
        for directory in made:  # only those that are empty again
            try:
                directory.rmdir()
            except OSError:
                break
        raise


def _move(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # unlike a rename it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(source, target)


def _plain_rights(directory: Path) -> None:
    """What the user's mask gives: some writers (safetensors, `mkdtemp`) shut out all but the owner."""
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    for path in directory.rglob("*"):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
