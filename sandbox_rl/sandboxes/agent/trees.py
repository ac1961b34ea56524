"""Operations of the agent on whole directories: listing, placing, packing and unpacking."""

from __future__ import annotations

import _stat as stat
import posix as os  # as in `files`

from sandbox_rl.sandboxes.agent.files import (
    FileTrouble,
    make_directories,
    open_directory,
    read_regular,
    store,
)
from sandbox_rl.sandboxes.agent.wire import WireError, integer, number, take

MAX_SCAN = 200_000  # directory entries looked at by one request


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
    fd = open_directory(directory)
    try:
        with os.scandir(b"/proc/self/fd/%d" % fd) as entries:
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
                    except (OSError, FileTrouble):
                        continue  # a directory that may not be read is still listed itself
    finally:
        os.close(fd)
    return budget


def walk(root: bytes) -> list[tuple[bytes, os.stat_result]]:
    """(path relative to root, lstat) of everything below `root`, parents first, links not followed.

    What cannot be read, or has a path that is too long to name, is left out.
    """
    listed: list[tuple[bytes, os.stat_result]] = []
    os.close(open_directory(root))
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


def pack(fields: list[bytes]) -> list[bytes]:
    """(max bytes, regular files only?, roots …) → path, mode and content by turns.

    Otherwise of directories, files and links.
    """
    limit, only_files, roots = integer(fields[0]), fields[1] == b"1", fields[2:]
    left = limit
    result: list[bytes] = []
    for root in roots:
        for relative, status in walk(root):
            path, data = root + b"/" + relative, b""
            try:
                if stat.S_ISREG(status.st_mode):
                    if status.st_size > left:
                        raise FileTrouble(b"too_large", f"more than {limit} bytes together")
                    data = read_regular(path, left, os.O_NOFOLLOW)
                elif only_files:
                    continue
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
