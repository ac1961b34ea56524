"""Checks of paths and file names before anything is sent into a sandbox."""

from __future__ import annotations

from collections.abc import Iterable

from sandbox_rl.errors import FileProblem, SandboxFileError

__all__ = ["check_file_names", "checked_path"]

NAME_MAX = 255  # bytes of one component
PATH_MAX = 4095  # bytes of a whole path


def checked_path(path: str) -> bytes:
    """An absolute path inside the sandbox, as bytes.

    Raises:
        SandboxFileError: it is not absolute, holds NUL, is no UTF-8, or is too long.
    """
    if not path.startswith("/") or "\0" in path:
        raise SandboxFileError(FileProblem.BAD_PATH, path, "must be absolute, without NUL")
    try:
        name = path.encode()
    except UnicodeEncodeError:
        raise SandboxFileError(FileProblem.BAD_PATH, ascii(path), "not valid UTF-8") from None
    if len(name) > PATH_MAX or any(len(part) > NAME_MAX for part in name.split(b"/")):
        raise SandboxFileError(FileProblem.BAD_PATH, path, "name too long")
    return name


def check_file_names(names: Iterable[str]) -> None:
    """Accept only relative POSIX paths that stay below where they are put.

    Raises:
        ValueError: names the first that does not.
    """
    for name in names:
        parts = name.split("/")
        if (
            not name
            or "\0" in name
            or any(part in ("", ".", "..") for part in parts)
            or any(ord(c) < 0x20 or ord(c) == 0x7F or 0xD800 <= ord(c) < 0xE000 for c in name)
            or max(len(part.encode("utf-8", "surrogatepass")) for part in parts) > NAME_MAX
            or len(name.encode("utf-8", "surrogatepass")) > PATH_MAX - 100
        ):
            shown = ascii(name if len(name) < 80 else name[:77] + "...")
            raise ValueError(
                f"file name {shown} is not usable in a sandbox: expected a relative path without "
                "'..', empty parts or control characters, each part at most 255 bytes"
            )
