"""A sandbox as seen through its agent: what every backend that has an agent shares."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from sandbox_rl.errors import FileProblem, SandboxDead, SandboxFileError
from sandbox_rl.sandboxes.agent import wire
from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR, SandboxLimits
from sandbox_rl.sandboxes.names import checked_path
from sandbox_rl.sandboxes.protocol import AgentChannel, Reply, exec_result, file_error
from sandbox_rl.types import Answer, AnswerStatus, ExecResult, ExecStatus, Stream

P = ParamSpec("P")
T = TypeVar("T")

KILL_GRACE_S = 5.0  # for the agent to end a command's tree and report, beyond the command's time
FILE_TIMEOUT_S = 30.0
BATCH_BYTES = 8 << 20  # of one request that carries files
FRAMING = 32 << 20  # bytes of names and lengths beside the content of many files
LONGEST_COMMAND = 32 << 20
ORDINARY_FILE = wire.number(stat.S_IFREG | 0o644)

OutOfMemory = Callable[[], bool]
"""Whether the kernel has killed something in the sandbox for its memory since the last call."""


@dataclass(frozen=True, slots=True)
class AgentSandbox:
    """Fulfils `Sandbox` over an `AgentChannel`.

    Args:
        id: identity.
        channel: connected, its hello received.
        limits: of this sandbox.
        check_host: raises SandboxFault if the host side of the backend is gone. A dead agent while
            the host side works is the policy's doing.
        out_of_memory: asked after a command was killed; None where nobody counts.
    """

    id: str
    channel: AgentChannel
    limits: SandboxLimits
    check_host: Callable[[], Awaitable[None]]
    out_of_memory: OutOfMemory | None = None

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        """Run `command` in a fresh bash; see `Sandbox.exec`.

        A time-out kills every process that has come into being since the command began, wherever it
        has put itself, except what background jobs of earlier commands have started.
        """
        script = command.encode("utf-8", "surrogatepass")
        try:
            directory = checked_path(cwd)
        except SandboxFileError:
            return _refused(f"no such directory: {cwd!r}")
        if b"\0" in script or len(script) > LONGEST_COMMAND:
            return _refused("a command must not hold NUL bytes or more than 32 MiB")
        cap = self.limits.output_bytes
        fields = (script, directory, wire.number(max(1, int(timeout * 1000))), wire.number(cap))
        started = time.monotonic()
        try:
            reply = await self.channel.request(
                wire.EXEC, fields, timeout=timeout + KILL_GRACE_S, max_reply=2 * cap + 4096
            )
            result = self._understood(exec_result, reply, cap=cap, elapsed=time.monotonic() - started)
        except SandboxDead:
            await self.check_host()
            return ExecResult(ExecStatus.SANDBOX_DEAD, seconds=time.monotonic() - started)
        if result.exit_code == 137 and self.out_of_memory is not None and self.out_of_memory():
            return replace(result, status=ExecStatus.OOM)
        return result

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        fields = (checked_path(path), wire.number(max_bytes))
        return (await self._files(wire.READ, fields, path, max_reply=max_bytes + 4096, count=1))[0]

    async def write_file(self, path: str, data: bytes) -> None:
        name = checked_path(path)
        if path.endswith(("/", "/.", "/..")):
            raise SandboxFileError(FileProblem.IS_DIRECTORY, path)
        for start in range(0, max(len(data), 1), BATCH_BYTES):
            piece = data[start : start + BATCH_BYTES]
            await self._files(wire.WRITE, (name, b"1" if start else b"0", piece), path, count=0)

    async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
        """Paths up to two levels below a directory; see `Sandbox.list_dir`.

        Bytes of a name that are no UTF-8 are shown as `\\xNN`.
        """
        fields = (checked_path(path), wire.number(max_entries))
        found = await self._files(wire.LIST, fields, path, max_reply=max_entries * 600 + FRAMING)
        return tuple(name.decode("utf-8", "backslashreplace") for name in found[:max_entries])

    async def get_files(self, root: str, *, max_bytes: int) -> Mapping[str, bytes]:
        prefix = checked_path(root) + b"/"
        packed = await self._packed((root,), max_bytes, only_files=True)
        paths, contents = packed[::3], packed[2::3]
        if sum(map(len, contents)) > max_bytes or not all(path.startswith(prefix) for path in paths):
            self._break("a tree that is larger than asked for, or another")
        names = (path.removeprefix(prefix).decode("utf-8", "backslashreplace") for path in paths)
        return dict(zip(names, contents, strict=True))

    async def put_files(self, files: Mapping[str, bytes]) -> None:
        """Place files (checked relative path → content) below `INPUT_DIR`, few requests for many files."""
        packed: list[bytes] = []
        for name, data in files.items():
            if len(data) > BATCH_BYTES:
                await self.write_file(f"{INPUT_DIR}/{name}", data)
            else:
                packed += (f"{INPUT_DIR}/{name}".encode(), ORDINARY_FILE, data)
        await self.unpack(packed, INPUT_DIR)

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        """Kill everything, then read the answer once; see `Sandbox.read_answer`."""
        fields = (checked_path(path), wire.number(max_bytes))
        try:
            reply = await self.channel.request(
                wire.ANSWER, fields, timeout=FILE_TIMEOUT_S, max_reply=max_bytes + 4096
            )
            return self._understood(_answer, reply, max_bytes=max_bytes)
        except SandboxDead:
            await self.check_host()
            return Answer(AnswerStatus.MISSING)

    async def pack(self, roots: Sequence[str], *, max_bytes: int) -> Sequence[bytes]:
        """Directories, files and links below `roots`, for `unpack` in another sandbox.

        Everything in the sandbox is stopped meanwhile.
        """
        await self._files(wire.FREEZE, (), "/", count=0)
        try:
            return await self._packed(roots, max_bytes)
        finally:
            if not self.channel.dead:
                await self._files(wire.THAW, (), "/", count=0)

    async def _packed(
        self, roots: Sequence[str], max_bytes: int, *, only_files: bool = False
    ) -> Sequence[bytes]:
        """Path, mode and content by turns."""
        fields = (wire.number(max_bytes), wire.number(only_files), *(root.encode() for root in roots))
        packed = await self._files(wire.PACK, fields, roots[0], max_reply=max_bytes + FRAMING)
        if len(packed) % 3:
            self._break("an incomplete tree")
        return packed

    async def unpack(self, packed: Sequence[bytes], root: str = "/") -> None:
        """Recreate what `pack` returned, in requests of bounded size.

        Args:
            root: for messages.
        """
        batch: list[bytes] = []
        size = 0
        for i in range(0, len(packed), 3):
            batch += packed[i : i + 3]
            size += len(packed[i + 2])
            if size > BATCH_BYTES or i + 3 == len(packed):
                await self._files(wire.UNPACK, batch, root, count=0)
                batch, size = [], 0

    async def ping(self) -> None:
        """Raises SandboxDead unless the agent answers."""
        await self._files(wire.PING, (), "/", count=0)

    async def _files(
        self,
        code: int,
        fields: Sequence[bytes],
        path: str,
        *,
        max_reply: int = 65_536,
        count: int | None = None,
    ) -> list[bytes]:
        """A file operation's reply, `count` fields if given."""
        try:
            reply = await self.channel.request(code, fields, timeout=FILE_TIMEOUT_S, max_reply=max_reply)
            if reply.code != wire.OK:
                raise self._understood(file_error, reply, path=path)
            if count is not None:
                self._understood(wire.take, reply.fields, count=count)
            return reply.fields
        except SandboxDead:
            await self.check_host()
            raise

    def _understood(self, reader: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `reader` makes of a reply; one that cannot be read ends the sandbox."""
        try:
            return reader(*args, **kwargs)
        except wire.WireError as error:
            self.channel.close(f"protocol broken: {error}")
            raise SandboxDead(self.channel.why_dead) from None

    def _break(self, what: str) -> None:
        self.channel.close(f"protocol broken: {what}")
        raise SandboxDead(self.channel.why_dead)


def _answer(reply: Reply, *, max_bytes: int) -> Answer:
    """The typed answer. Raises WireError if the reply does not follow the protocol."""
    if reply.code in (wire.FILE_ERROR, wire.BAD_REQUEST):
        return Answer(AnswerStatus.NOT_REGULAR)
    what, data = wire.take(reply.fields, 2)
    kind = wire.integer(what, 0, wire.HUGE)
    if kind != wire.FOUND:
        statuses = {wire.ABSENT: AnswerStatus.MISSING, wire.HUGE: AnswerStatus.TOO_LARGE}
        return Answer(statuses.get(kind, AnswerStatus.NOT_REGULAR))
    if len(data) > max_bytes:
        raise wire.WireError(f"answer of {len(data)} bytes, limit {max_bytes}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Answer(AnswerStatus.UNDECODABLE)
    return Answer(AnswerStatus.UNDECODABLE) if "\0" in text else Answer(AnswerStatus.OK, text)


def _refused(message: str) -> ExecResult:
    """The result of a command that no shell could be started for, in a shell's own form."""
    text = message.encode("utf-8", "replace") + b"\n"
    return ExecResult(ExecStatus.OK, exit_code=126, stderr=Stream(text, total_bytes=len(text)))


def kill_counter(pid: int) -> OutOfMemory | None:
    """Whether the kernel's count of the cgroup of process `pid` has risen since the last call.

    None where it cannot be read: another machine's engine, or a cgroup out of sight.
    """
    try:
        rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    root = Path("/sys/fs/cgroup")
    for row in rows:
        _, controllers, path = row.split(":", 2)
        inside = path.lstrip("/")
        if "memory" in controllers.split(","):
            file = root / "memory" / inside / "memory.oom_control"
        elif not controllers:
            file = root / inside / "memory.events"
        else:
            continue
        if file.is_file():
            return rising(file)
    return None


def rising(file: Path) -> OutOfMemory:
    """Whether the count of kills in `file` has risen since the last call; not where it cannot be read."""
    seen = 0

    def risen() -> bool:
        nonlocal seen
        try:
            match = re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE)
        except OSError:
            return False
        before, seen = seen, int(match[1]) if match else 0
        return seen > before

    return risen
