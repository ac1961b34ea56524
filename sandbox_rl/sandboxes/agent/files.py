"""File operations of the agent. Paths are bytes; nothing here waits for another process.

The agent has the rights of the commands, no more, so a link may lead anywhere inside the sandbox, except
to what the kernel tells, or lets it change, of the agent itself: that is closed to the commands. Every
file is opened without blocking and judged by `fstat` before a byte of it is used.
"""

from __future__ import annotations

import _stat as stat
import errno
import posix as os  # what `os` adds to it takes a millisecond to import

from sandbox_rl.sandboxes.agent.wire import ABSENT, FOUND, HUGE, ODD, integer, number, take

PROBLEMS = {
    errno.ENOENT: b"missing",
    errno.EISDIR: b"is_directory",
    errno.EEXIST: b"exists",
    errno.EFBIG: b"too_large",
    errno.EACCES: b"permission",
    errno.EPERM: b"permission",
    errno.EROFS: b"permission",
    errno.ENOSPC: b"no_space",
    errno.EDQUOT: b"no_space",
    errno.ENOMEM: b"no_space",
    errno.EMFILE: b"no_space",
    errno.ELOOP: b"bad_path",
    errno.ENAMETOOLONG: b"bad_path",
    errno.EBUSY: b"busy",
    errno.ETXTBSY: b"busy",
}
SEEK_END = 2
CHUNK = 1 << 20
NO_BLOCK = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
OWN_PROC = b"/proc/%d/" % os.getpid()


class FileTrouble(Exception):
    """A file operation that the sandbox's state made impossible: `problem` is a FileProblem value."""

    def __init__(self, problem: bytes, detail: str = "") -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail


def trouble_of(error: OSError) -> FileTrouble:
    """The typed form of an OSError; one that is not listed is of an odd file."""
    return FileTrouble(PROBLEMS.get(error.errno or 0, b"not_regular"), os.strerror(error.errno or 0))


def judged(fd: int) -> os.stat_result:
    """What an open file is.

    Raises:
        FileTrouble: it is of the agent's own process information, by whatever path it was opened.
    """
    status = os.fstat(fd)
    if status.st_dev != os.stat("/proc").st_dev:
        return status
    if (os.readlink(b"/proc/self/fd/%d" % fd) + b"/").startswith(OWN_PROC):
        raise FileTrouble(b"permission", "the agent's own")
    return status


def read_at_most(fd: int, limit: int) -> bytes:
    """Content of an open file. Raises FileTrouble when there is more than `limit` bytes."""
    parts: list[bytes] = []
    left = limit + 1
    while left > 0:
        data = os.read(fd, min(left, CHUNK))
        if not data:
            return b"".join(parts)
        parts.append(data)
        left -= len(data)
    raise FileTrouble(b"too_large", f"more than {limit} bytes")


def read_file(fields: list[bytes]) -> list[bytes]:
    """(path, max bytes) → (content,)."""
    path, limit = take(fields, 2)
    return [read_regular(path, integer(limit))]


def read_regular(path: bytes, limit: int, flags: int = 0, directory: int | None = None) -> bytes:
    """Content of a regular file of at most `limit` bytes; a relative path is of an open directory."""
    fd = os.open(path, os.O_RDONLY | NO_BLOCK | flags, dir_fd=directory)
    try:
        status = judged(fd)
        if stat.S_ISDIR(status.st_mode):
            raise FileTrouble(b"is_directory")
        if not stat.S_ISREG(status.st_mode):
            raise FileTrouble(b"not_regular")
        if status.st_size > limit:
            raise FileTrouble(b"too_large", f"{status.st_size} bytes, limit {limit}")
        return read_at_most(fd, limit)
    finally:
        os.close(fd)


def write_file(fields: list[bytes]) -> list[bytes]:
    """(path, append?, data) → (). Makes missing parent directories."""
    path, append, data = take(fields, 3)
    store(path, data, append == b"1")
    return []


def store(path: bytes, data: bytes, append: bool = False) -> None:
    """Create, replace or extend a regular file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | NO_BLOCK, 0o644)
    except FileNotFoundError:
        make_directories(path.rpartition(b"/")[0])
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | NO_BLOCK, 0o644)
    try:
        if not stat.S_ISREG(judged(fd).st_mode):
            raise FileTrouble(b"not_regular")
        if append:
            os.lseek(fd, 0, SEEK_END)
        else:
            os.ftruncate(fd, 0)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def make_directories(path: bytes) -> None:
    """Make a directory and those above it that are missing; one that is there already is fine.

    A path may have more parts than Python allows calls within calls.
    """
    missing: list[bytes] = []
    while path and not make_directory(path):
        missing.append(path)
        path = path.rstrip(b"/").rpartition(b"/")[0]
    for path in reversed(missing):
        if not make_directory(path):
            raise FileNotFoundError(errno.ENOENT, "")


def make_directory(path: bytes) -> bool:
    """Make one, unless it is there. False if what should hold it is missing."""
    try:
        os.mkdir(path)
    except FileNotFoundError:
        return False
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise
    return True


def open_directory(path: bytes) -> int:
    """A descriptor of a directory that may be looked at."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | NO_BLOCK)
    try:
        judged(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_answer(fields: list[bytes]) -> list[bytes]:
    """(path, max bytes) → (what is there, content). No component of the path may be a link."""
    path, limit = take(fields, 2)
    most = integer(limit)
    here = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = [part for part in path.split(b"/") if part]
        for part in parents:
            deeper = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        return [number(FOUND), read_regular(name, most, os.O_NOFOLLOW, here)]
    except FileNotFoundError:
        return [number(ABSENT), b""]
    except FileTrouble as trouble:
        return [number(HUGE if trouble.problem == b"too_large" else ODD), b""]
    except (OSError, ValueError):
        return [number(ODD), b""]
    finally:
        os.close(here)
