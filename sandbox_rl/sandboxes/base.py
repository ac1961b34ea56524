"""The Protocols every sandbox backend fulfils, and the limits it enforces.

A sandbox is used once, by one episode, and destroyed: there is no reset. Everything that the policy
can bring about comes back as a value or as a `SandboxCondition`; `SandboxFault` is raised only for
failures of the host side (the spawner, the daemon, the machine).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sandbox_rl.types import Answer, ExecResult, MalformedCall, Observation, ToolCall

WORKING_DIR = "/testbed"
"""Working directory of every command, private and writable."""

INPUT_DIR = "/testbed/documents"
"""Where a task's files are placed before the episode."""

ANSWER_FILE = "/testbed/answer.txt"
"""What is read and scored after the episode."""


COMMAND_VARIABLES = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
    "HOME": "/home/sandbox",
    "USER": "sandbox",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
"""What the environment of a command holds, beside what its settings add and PWD."""

LEAST_MEMORY_MB = 16
"""With less no shell answers, which looks like a broken machine."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one sandbox may use. Sizes in MiB, output sizes in bytes per stream."""

    memory_mb: int = 512
    pids: int = 128
    disk_mb: int = 256
    inodes: int = 20_000
    open_files: int = 1024
    file_size_mb: int = 256
    cpus: float = 1.0
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"limit {name}: {value}, expected a number above 0")
        if self.memory_mb < LEAST_MEMORY_MB:
            raise ValueError(
                f"limit memory_mb: {self.memory_mb}, expected at least {LEAST_MEMORY_MB}: a shell and Python "
                "need as much"
            )


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """Which backend runs, how it isolates, and what it lacks on this machine.

    `lacks` holds one plain sentence per promise that this tier cannot keep here (empty: all kept), and
    `known_limits` the ids of the cases (`sandboxes.cases`) that show it.
    """

    backend: str
    tier: str
    version: str = ""
    lacks: tuple[str, ...] = ()
    known_limits: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


class Sandbox(Protocol):
    """One private computer. All paths are absolute paths inside the sandbox."""

    @property
    def id(self) -> str:
        """Random, unique, safe in file names."""
        ...

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        """Run `command` in a fresh bash; ends when the shell ends, not when its pipes close.

        Background jobs live on until the sandbox closes. At `timeout` seconds the command's whole
        process tree is killed (status TIMEOUT, partial output kept). Standard input is empty.
        Never raises for anything that the command does; a dead sandbox gives SANDBOX_DEAD.

        Raises:
            SandboxFault: the host side failed.
        """
        ...

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """Content of a regular file.

        Raises:
            SandboxFileError: missing, not regular, larger than `max_bytes`, not permitted.
            SandboxDead, SandboxFault.
        """
        ...

    async def write_file(self, path: str, data: bytes) -> None:
        """Create or replace a file byte-exactly, making missing parent directories.

        Raises:
            SandboxFileError: the path is a directory or odd, not permitted, no space left.
            SandboxDead, SandboxFault.
        """
        ...

    async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
        """Paths up to two levels below directory `path`, sorted, hidden ones left out.

        Directories end in "/". Raises as `read_file` (a file that is no directory: NOT_REGULAR).
        """
        ...

    async def get_files(self, root: str, *, max_bytes: int) -> Mapping[str, bytes]:
        """Regular files below `root` as relative path → content; links and odd files left out.

        Raises:
            SandboxFileError: `root` is missing, or the files exceed `max_bytes` together.
            SandboxDead, SandboxFault.
        """
        ...

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        """Freeze or kill everything in the sandbox, then read the answer once.

        Follows no link, never blocks, bounded. UTF-8 with the byte-order mark dropped; text with
        NUL bytes or invalid UTF-8 is UNDECODABLE. Outer white space is kept. A dead sandbox gives
        MISSING. No other call is valid afterwards.

        Raises:
            SandboxFault: the host side failed.
        """
        ...


class SandboxBackend(Protocol):
    """Makes sandboxes. Itself an async context manager: entering starts what is shared."""

    @property
    def info(self) -> SandboxInfo:
        """Valid once entered."""
        ...

    def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AbstractAsyncContextManager[Sandbox]:
        """A new sandbox with `files` (relative POSIX path → content) under `INPUT_DIR`.

        Leaving the context destroys it whatever happened, cancellation included.

        Raises:
            ValueError: a file name is absolute, contains "..", NUL, or is too long.
            SandboxFault: it could not be made within `timeout` seconds.
            SetupError: this machine can make none at all.
        """
        ...

    async def __aenter__(self) -> SandboxBackend: ...

    async def __aexit__(self, *exc: object) -> None: ...


@runtime_checkable
class AnswersCalls(Protocol):
    """A sandbox that knows what came of whole calls, so that no tool runs."""

    async def answer(self, call: ToolCall | MalformedCall) -> Observation:
        """What answers this call."""
        ...


@runtime_checkable
class PlaysEpisodes(Protocol):
    """A backend that must know whose sandbox it makes, since it plays what was recorded of that episode."""

    def sandbox_of(self, episode_id: str) -> AbstractAsyncContextManager[Sandbox]:
        """The sandbox of this episode."""
        ...
