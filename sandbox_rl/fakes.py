"""Shipped fakes: a sandbox without a computer behind it, for tests, benchmarks and debugging.

`RecordingSandbox` keeps its files in memory, answers `exec` with a function that you give, and
records every call. It fulfils `sandboxes.base.Sandbox`, errors included, so code that runs against
it runs against a real one.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sandbox_rl.errors import FileProblem, SandboxDead, SandboxFault, SandboxFileError
from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR, SandboxInfo
from sandbox_rl.types import Answer, AnswerStatus, ExecResult, ExecStatus, Stream

ExecAnswer = Callable[[str], ExecResult | Awaitable[ExecResult]]
"""What answers a command: its outcome, at once or awaited."""

_NAME_MAX = 255
_PATH_MAX = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call: the method's name and its arguments by name."""

    method: str
    arguments: Mapping[str, Any]


def exec_ok(stdout: str | bytes = b"", stderr: str | bytes = b"", exit_code: int = 0) -> ExecResult:
    """An `ExecResult` of a command that ran to its end; text is encoded as UTF-8."""
    return ExecResult(
        ExecStatus.OK, exit_code=exit_code, stdout=_stream(stdout), stderr=_stream(stderr), seconds=0.0
    )


class RecordingSandbox:
    """An in-memory `Sandbox`.

    Args:
        id: its identity.
        files: absolute path → content, to start with.
        answer_exec: answers each command; by default every command prints nothing and exits with 0.

    Attributes:
        files: absolute path → content as of now.
        calls: every call in order.
        dead: set it to make the sandbox behave as one that the policy destroyed.
    """

    def __init__(
        self,
        id: str = "recording-0",
        files: Mapping[str, bytes] | None = None,
        answer_exec: ExecAnswer | None = None,
    ) -> None:
        self._id = id
        self.files: dict[str, bytes] = dict(files or {})
        self.directories: set[str] = {"/", "/tmp", WORKING_DIR, INPUT_DIR}
        for path in self.files:
            self._add_parents(path)
        self._answer_exec = answer_exec
        self.calls: list[Call] = []
        self.dead = False

    @property
    def id(self) -> str:
        """Identity given at construction."""
        return self._id

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands that `exec` was given, in order."""
        return tuple(c.arguments["command"] for c in self.calls if c.method == "exec")

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        """Ask the given function; an answer that takes longer than `timeout` becomes TIMEOUT."""
        self._record("exec", command=command, timeout=timeout, cwd=cwd)
        if self.dead:
            return ExecResult(ExecStatus.SANDBOX_DEAD)
        if self._answer_exec is None:
            return exec_ok()
        answer = self._answer_exec(command)
        if not inspect.isawaitable(answer):
            return answer
        try:
            async with asyncio.timeout(timeout) as limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            return ExecResult(ExecStatus.TIMEOUT, seconds=timeout)

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """Content of a file kept in memory."""
        self._record("read_file", path=path, max_bytes=max_bytes)
        path = self._checked(path)
        if path in self.directories:
            raise SandboxFileError(FileProblem.IS_DIRECTORY, path)
        data = self.files.get(path)
        if data is None:
            raise SandboxFileError(FileProblem.MISSING, path)
        if len(data) > max_bytes:
            raise SandboxFileError(FileProblem.TOO_LARGE, path, f"{len(data)} bytes, limit {max_bytes}")
        return data

    async def write_file(self, path: str, data: bytes) -> None:
        """Keep `data` under `path`, with its parent directories."""
        self._record("write_file", path=path, data=data)
        path = self._checked(path)
        if path in self.directories:
            raise SandboxFileError(FileProblem.IS_DIRECTORY, path)
        self._add_parents(path)
        self.files[path] = bytes(data)

    async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
        """Paths up to two levels below `path`, sorted, at most `max_entries`."""
        self._record("list_dir", path=path, max_entries=max_entries)
        path = self._checked(path)
        if path in self.files:
            raise SandboxFileError(FileProblem.NOT_REGULAR, path, "not a directory")
        if path not in self.directories:
            raise SandboxFileError(FileProblem.MISSING, path)
        prefix = path.rstrip("/") + "/"
        names = itertools.chain(self.files, (d + "/" for d in self.directories))
        found = (n for n in names if n.startswith(prefix) and n != prefix)
        return tuple(sorted(n for n in found if _within_two_levels(n[len(prefix) :])))[:max_entries]

    async def get_files(self, root: str, *, max_bytes: int) -> Mapping[str, bytes]:
        """All files below `root` as relative path → content."""
        self._record("get_files", root=root, max_bytes=max_bytes)
        root = self._checked(root)
        if root not in self.directories:
            raise SandboxFileError(FileProblem.MISSING, root)
        prefix = root.rstrip("/") + "/"
        inside = {p[len(prefix) :]: data for p, data in sorted(self.files.items()) if p.startswith(prefix)}
        total = sum(map(len, inside.values()))
        if total > max_bytes:
            raise SandboxFileError(FileProblem.TOO_LARGE, root, f"{total} bytes, limit {max_bytes}")
        return inside

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        """The answer as a real sandbox would judge it."""
        self._record("read_answer", path=path, max_bytes=max_bytes)
        data = self.files.get(path)
        if self.dead or (data is None and path not in self.directories):
            return Answer(AnswerStatus.MISSING)
        if data is None:
            return Answer(AnswerStatus.NOT_REGULAR)
        if len(data) > max_bytes:
            return Answer(AnswerStatus.TOO_LARGE)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return Answer(AnswerStatus.UNDECODABLE)
        return Answer(AnswerStatus.UNDECODABLE) if "\0" in text else Answer(AnswerStatus.OK, text)

    def _record(self, method: str, **arguments: Any) -> None:
        self.calls.append(Call(method, arguments))

    def _checked(self, path: str) -> str:
        """The normal form of `path`; raises what a real sandbox would raise for an odd one."""
        if self.dead:
            raise SandboxDead(f"sandbox {self._id} is dead")
        if not path.startswith("/") or "\0" in path or len(path.encode(errors="replace")) >= _PATH_MAX:
            raise SandboxFileError(FileProblem.BAD_PATH, path)
        parts = path.split("/")
        if any(len(part.encode(errors="replace")) > _NAME_MAX for part in parts):
            raise SandboxFileError(FileProblem.BAD_PATH, path, "name too long")
        return "/" + posixpath.normpath(path).lstrip("/")

    def _add_parents(self, path: str) -> None:
        parents = list(itertools.accumulate(path.split("/")[1:-1], "{}/{}".format, initial=""))[1:]
        for parent in parents:
            if parent in self.files:
                raise SandboxFileError(FileProblem.NOT_REGULAR, parent, "not a directory")
        self.directories.update(parents)


class RecordingBackend:
    """Makes `RecordingSandbox`es and keeps them for inspection.

    Args:
        answer_exec: given to every sandbox.
        fail_first: how many sandboxes fail to start (`SandboxFault`) before the first works, to try
            out retries.

    Attributes:
        sandboxes: every sandbox made, in order.
        alive: those whose context has not been left.
    """

    def __init__(self, answer_exec: ExecAnswer | None = None, *, fail_first: int = 0) -> None:
        self._answer_exec = answer_exec
        self._failures_left = fail_first
        self.sandboxes: list[RecordingSandbox] = []
        self.alive: set[str] = set()

    @property
    def info(self) -> SandboxInfo:
        """Says plainly that nothing is isolated, because nothing runs."""
        return SandboxInfo(backend="recording", tier="none", lacks=("No command runs at all.",))

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[RecordingSandbox]:
        """A new in-memory sandbox with `files` under `INPUT_DIR`."""
        for name in files or {}:
            if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
                raise ValueError(f"file name {name!r} must be a relative path without '..' and NUL")
        if self._failures_left > 0:
            self._failures_left -= 1
            raise SandboxFault("this recording backend was told to fail its first sandboxes")
        placed = {f"{INPUT_DIR}/{name}": data for name, data in (files or {}).items()}
        made = RecordingSandbox(f"recording-{len(self.sandboxes)}", placed, self._answer_exec)
        self.sandboxes.append(made)
        self.alive.add(made.id)
        try:
            yield made
        finally:
            self.alive.discard(made.id)

    async def __aenter__(self) -> RecordingBackend:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def _stream(data: str | bytes) -> Stream:
    raw = data.encode() if isinstance(data, str) else data
    return Stream(head=raw, total_bytes=len(raw))


def _within_two_levels(relative: str) -> bool:
    parts = relative.rstrip("/").split("/")
    return len(parts) <= 2 and not any(part.startswith(".") for part in parts)
