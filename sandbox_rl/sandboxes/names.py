"""Checks of paths and file names before anything is sent into a sandbox."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox_rl.errors import FileProblem, SandboxFileError
from sandbox_rl.sandboxes.base import INPUT_DIR, SandboxLimits

NAME_MAX = 255  # bytes of one component
PATH_MAX = 4095  # bytes of a whole path


def checked_path(path: str) -> bytes:
    """An absolute path inside the sandbox, as bytes.

    Raises:
        SandboxFileError: it is not absolute, holds NUL, is no UTF-8, or is too long.
    """
    if not path.startswith("/") or "\0" in path:
        raise SandboxFileError(FileProblem.BAD_PATH, path or "''", "must be absolute, without NUL")
    try:
        name = path.encode()
    except UnicodeEncodeError:
        raise SandboxFileError(FileProblem.BAD_PATH, ascii(path), "not valid UTF-8") from None
    if len(name) > PATH_MAX or any(len(part) > NAME_MAX for part in name.split(b"/")):
        raise SandboxFileError(FileProblem.BAD_PATH, path, "name too long")
    return name


def check_files(files: Mapping[str, bytes], limits: SandboxLimits) -> None:
    """Accept only relative POSIX paths that stay below where they are put, and what fits.

    Raises:
        ValueError: names the first that does not.
    """
    directories = {name[:i] for name in files for i, char in enumerate(name) if char == "/"}
    for name in files:
        encoded = name.encode("utf-8", "surrogatepass")
        parts = encoded.split(b"/")
        if (
            b"\0" in encoded
            or any(part in (b"", b".", b"..") for part in parts)
            or any(0xD800 <= ord(char) < 0xE000 for char in name)
            or max(map(len, parts)) > NAME_MAX
            or len(encoded) > PATH_MAX - len(INPUT_DIR) - 1
        ):
            shown = ascii(name if len(name) < 80 else name[:77] + "...")
            raise ValueError(
                f"file name {shown} is not usable in a sandbox: expected a relative path without '..' or "
                f"NUL, each part at most {NAME_MAX} bytes"
            )
        if name in directories:
            raise ValueError(f"file name {name!a} is also the directory of another file; rename one")
    size, most = sum(map(len, files.values())), limits.disk_mb << 20
    if size > most or len(files) + len(directories) > limits.inodes:
        raise ValueError(
            f"{len(files)} files of {size} bytes together do not fit into a sandbox "
            f"({most} bytes, {limits.inodes} inodes); raise its limits disk_mb and inodes"
        )
