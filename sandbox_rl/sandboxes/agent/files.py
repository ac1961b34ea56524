"""File operations of the agent. Paths are bytes; nothing here waits for another process.

The agent has the rights of the commands, no more, so a link may lead anywhere inside the sandbox.
Every file is opened without blocking and judged by `fstat` before a byte of it is used.
"""

from __future__ import annotations

import _stat as stat
import errno
import posix as os  # what `os` adds to it takes a millisecond to import

from sandbox_rl.sandboxes.agent.wire import ABSENT, FOUND, HUGE, ODD, WireError, integer, number, take

PROBLEMS = {
    errno.ENOENT: b"missing",
    errno.ENOTDIR: b"not_regular",
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
    errno.EINVAL: b"not_regular",
    errno.ENXIO: b"not_regular",
    errno.EBUSY: b"busy",
    errno.ETXTBSY: b"busy",
}
SEEK_END = 2
MAX_SCAN = 200_000  # directory entries looked at by one request
CHUNK = 1 << 20
NO_BLOCK = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class FileTrouble(Exception):
    """A file operation that the sandbox's state made impossible: `problem` is a FileProblem value."""

    def __init__(self, problem: bytes, detail: str = "") -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail


def trouble_of(error: OSError) -> FileTrouble:
    """The typed form of an OSError; an unknown one counts as an odd file."""
    return FileTrouble(PROBLEMS.get(error.errno or 0, b"not_regular"), os.strerror(error.errno or 0))


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


def read_regular(path: bytes, limit: int, flags: int = 0) -> bytes:
    """Content of a regular file of at most `limit` bytes."""
    fd = os.open(path, os.O_RDONLY | NO_BLOCK | flags)
    try:
        status = os.fstat(fd)
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


def store(path: bytes, data: bytes, append: bool = False, mode: int = 0o644) -> None:
    """Create, replace or extend a regular file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | NO_BLOCK, mode)
    except FileNotFoundError:
        make_directories(path.rpartition(b"/")[0])
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | NO_BLOCK, mode)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
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


def put_tree(fields: list[bytes]) -> list[bytes]:
    """(root, then path and content by turns) → (). Paths are relative to `root`, checked by the host."""
    if len(fields) % 2 == 0:
        raise WireError("a path without content")
    make_directories(fields[0])
    for i in range(1, len(fields), 2):
        store(fields[0] + b"/" + fields[i], fields[i + 1])
    return []


def list_dir(fields: list[bytes]) -> list[bytes]:
    """(path, max entries) → sorted paths up to two levels below, directories ending in "/"."""
    path, limit = take(fields, 2)
    root = path.rstrip(b"/") or b"/"
    found: list[bytes] = []
    scan(root, found, MAX_SCAN, deep=True)
    found.sort()
    return found[: integer(limit)]


def scan(directory: bytes, found: list[bytes], budget: int, deep: bool) -> int:
    """Add the visible entries of `directory` to `found`; returns what is left of `budget`."""
    prefix = directory if directory.endswith(b"/") else directory + b"/"
    with os.scandir(directory) as entries:
        for entry in entries:
            budget -= 1
            if budget < 0:
                break
            if entry.name.startswith(b"."):
                continue
            if not entry.is_dir(follow_symlinks=False):
                found.append(prefix + entry.name)
                continue
            found.append(prefix + entry.name + b"/")
            if deep:
                try:
                    budget = scan(prefix + entry.name, found, budget, deep=False)
                except OSError:
                    continue  # a directory that may not be read is still listed itself
    return budget


def walk(root: bytes) -> list[tuple[bytes, os.stat_result]]:
    """(path relative to root, lstat) of everything below `root`, parents first, links not followed.

    What cannot be read, or has a path that is too long to name, is left out.
    """
    listed: list[tuple[bytes, os.stat_result]] = []
    pending = [b""]
    while pending:
        relative = pending.pop()
        try:
            with os.scandir(root + b"/" + relative) as entries:
                names = [entry.name for entry in entries]
        except OSError:
            if not relative:
                raise
            continue
        for name in sorted(names):
            path = relative + b"/" + name if relative else name
            try:
                status = os.lstat(root + b"/" + path)
            except OSError:
                continue
            listed.append((path, status))
            if len(listed) > MAX_SCAN:
                raise FileTrouble(b"too_large", f"more than {MAX_SCAN} files")
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
    return listed


def get_tree(fields: list[bytes]) -> list[bytes]:
    """(root, max bytes) → path and content by turns, regular files only."""
    root, limit = take(fields, 2)
    left = integer(limit)
    result: list[bytes] = []
    for path, status in walk(root):
        if not stat.S_ISREG(status.st_mode):
            continue
        if status.st_size > left:
            raise FileTrouble(b"too_large", f"more than {integer(limit)} bytes together")
        try:
            data = read_regular(root + b"/" + path, left, os.O_NOFOLLOW)
        except OSError:
            continue
        left -= len(data)
        result += (path, data)
    return result


def pack(fields: list[bytes]) -> list[bytes]:
    """(max bytes, roots …) → path, mode and content by turns: directories, files and links."""
    limit, roots = integer(fields[0]), fields[1:]
    left = limit
    result: list[bytes] = []
    for root in roots:
        for relative, status in walk(root):
            path = root + b"/" + relative
            data = b""
            try:
                if stat.S_ISREG(status.st_mode):
                    if status.st_size > left:
                        raise FileTrouble(b"too_large", f"more than {limit} bytes together")
                    data = read_regular(path, left, os.O_NOFOLLOW)
                elif stat.S_ISLNK(status.st_mode):
                    data = os.readlink(path)
                elif not stat.S_ISDIR(status.st_mode):
                    continue
            except OSError:
                continue
            left -= len(data)
            result += (path, number(status.st_mode), data)
    return result


def unpack(fields: list[bytes]) -> list[bytes]:
    """path, mode and content by turns, as `pack` gave them → ()."""
    if len(fields) % 3:
        raise WireError("a path without mode or content")
    closed: list[tuple[bytes, int]] = []
    for i in range(0, len(fields), 3):
        path, mode, data = fields[i], integer(fields[i + 1]), fields[i + 2]
        if stat.S_ISDIR(mode):
            make_directories(path)
            closed.append((path, stat.S_IMODE(mode)))
        elif stat.S_ISLNK(mode):
            os.symlink(data, path)
        else:
            store(path, data)
            os.chmod(path, stat.S_IMODE(mode))
    for path, permissions in reversed(closed):  # only now: a directory may have been read-only
        os.chmod(path, permissions)
    return []


def read_answer(fields: list[bytes]) -> list[bytes]:
    """(path, max bytes) → (what is there, content). No component of the path may be a link."""
    path, limit = take(fields, 2)
    here = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = [part for part in path.split(b"/") if part]
        for part in parents:
            deeper = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | NO_BLOCK, dir_fd=here)
    except FileNotFoundError:
        return [number(ABSENT), b""]
    except (OSError, ValueError):
        return [number(ODD), b""]
    finally:
        os.close(here)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return [number(ODD), b""]
        if status.st_size > integer(limit):
            return [number(HUGE), b""]
        return [number(FOUND), read_at_most(fd, integer(limit))]
    except FileTrouble:
        return [number(HUGE), b""]
    except OSError:
        return [number(ODD), b""]
    finally:
        os.close(fd)
