"""Every exception that sandbox_rl raises on purpose.

::

    SandboxRLError
    ├── UserError            the person can fix it: exit code 2, one line, no traceback
    │   ├── ConfigError      a recipe, an override or a command-line value
    │   ├── DataError        a row or a file of the data
    │   ├── ModelError       a model, tokenizer or chat template
    │   └── SetupError       the machine: namespaces, engine, image, space
    ├── InfraFault           ours: the episode is masked (reward None), counted and refilled
    │   ├── SandboxFault     a sandbox could not be made, or its host side broke
    │   └── EngineFault      the policy engine failed beyond its retries
    ├── StopAsked            a signal: what was going on was given up, what is finished is saved
    ├── NothingTrained       a run ended and no token of it had a gradient: exit code 3
    └── SandboxCondition     the policy's doing: becomes an observation, never a fault
        ├── SandboxFileError a path in the sandbox is missing, odd, too large …
        └── SandboxDead      the policy destroyed its own sandbox

Rule: nothing that the policy does may raise an `InfraFault`. What libraries raise where a disk, a right or a
network fails is recognised by `environment_error`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import StrEnum


class SandboxRLError(Exception):
    """Base class of all errors of this package."""

    said_elsewhere = False
    """Whether another process of the run says it to the person."""

    agreed = False
    """Whether every process of the run raises it at the same point, so that they can still act together."""


class UserError(SandboxRLError):
    """Something the person who runs the command can fix.

    The message is one line: the thing (file, line or key), its value, what was expected, the fix.
    """


class ConfigError(UserError):
    """A recipe, an override or a command-line value is wrong."""


class DataError(UserError):
    """A row or a file of the data is wrong."""


class ModelError(UserError):
    """A model, a tokenizer or a chat template cannot be used."""


class SetupError(UserError):
    """The machine lacks something: namespaces, a container engine, an image, space, rights."""


class InfraFault(SandboxRLError):
    """Our failure. The episode's reward is None; it is counted and its sample refilled."""


class SandboxFault(InfraFault):
    """A sandbox could not be created, or the host side of a living one broke."""


class EngineFault(InfraFault):
    """The policy engine failed beyond its retries."""


class StopAsked(SandboxRLError):
    """The run was asked to stop, and gave up what it was doing."""


class NothingTrained(SandboxRLError):
    """A run came to its end and trained on nothing; what it looked like is no result."""


class SandboxCondition(SandboxRLError):
    """A state that the policy brought about in its sandbox."""


class FileProblem(StrEnum):
    """Why a file operation inside the sandbox was refused."""

    MISSING = "missing"
    EXISTS = "exists"
    NOT_REGULAR = "not_regular"
    IS_DIRECTORY = "is_directory"
    TOO_LARGE = "too_large"
    PERMISSION = "permission"
    NO_SPACE = "no_space"
    BAD_PATH = "bad_path"
    BUSY = "busy"


class SandboxFileError(SandboxCondition):
    """A file operation that the sandbox's own state made impossible."""

    def __init__(self, problem: FileProblem, path: str, detail: str = "") -> None:
        super().__init__(problem, path, detail)  # as they are: errors of other nodes come pickled
        self.problem = problem
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.problem.value}" + (f" ({self.detail})" if self.detail else "")


class SandboxDead(SandboxCondition):
    """The sandbox no longer answers because of what ran in it."""


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
