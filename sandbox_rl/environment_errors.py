"""Failures of the environment, recognised in whatever a library raises: disks, rights and networks."""

from __future__ import annotations

import errno
from collections.abc import Iterator

__all__ = ["environment_error"]

_DISKS = {
    errno.ENOSPC: ("no space is left on the device", "free some, or name another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or name another place"),
    errno.EROFS: ("the file system is read-only", "name another place"),
    errno.EACCES: ("this user may not", "change its rights, or name another"),
    errno.EPERM: ("this user may not", "change its rights, or name another"),
    errno.EIO: ("the device reports an error", "look at the system's log, or name another place"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}
_SAID = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Input/output error": errno.EIO,
    # torch.save does not say what the system said; a disk that takes no more is by far the commonest.
    "PytorchStreamWriter failed writing": errno.ENOSPC,
    "iostream error": errno.ENOSPC,
    "] . unexpected pos": errno.ENOSPC,
}
_NETWORK = ("ConnectError", "ConnectionError", "ConnectTimeout", "MaxRetryError", "OfflineModeIsEnabled")


def environment_error(error: BaseException) -> str | None:
    """One line for a failure of the environment, None for anything else.

    Libraries wrap what the system said, and some (safetensors, torch) only quote it.
    """
    for found in _chain(error):
        number = found.errno if isinstance(found, OSError) else None
        if number not in _DISKS:
            number = next((code for text, code in _SAID.items() if text in str(found)), None)
        if number in _DISKS:
            what, fix = _DISKS[number]
            where = getattr(found, "filename", None) or "writing"
            return f"{where}: {what}; {fix}"
        if type(found).__name__ in _NETWORK or isinstance(found, ConnectionError):
            said = " ".join(str(found).split())[:200]
            return f"network: a server cannot be reached ({said}); check the connection, or use local files"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
