"""A sandbox on another node: every call goes to the actor that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_rl.errors import SandboxDead
from sandbox_rl.sandboxes.agent_sandbox import FILE_TIMEOUT_S, KILL_GRACE_S
from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR
from sandbox_rl.sandboxes.ray.cluster import NodeActor
from sandbox_rl.types import Answer, AnswerStatus, ExecResult, ExecStatus

__all__ = ["RemoteSandbox"]

ON_THE_WAY_S = 15.0  # for request and reply, beyond what the call itself may take on its node


class RemoteSandbox:
    """Fulfils `Sandbox`, and what snapshots need, by the node's own deadlines plus time on the way."""

    def __init__(self, id: str, actor: NodeActor) -> None:
        self._id = id
        self._actor = actor
        self._closed = False

    def close(self) -> None:
        """From now on it counts as dead; its owner destroys it."""
        self._closed = True

    @property
    def id(self) -> str:
        """Random, unique, safe in file names."""
        return self._id

    @property
    def node(self) -> str:
        """Host and the beginning of the id of the node that it lives on."""
        return self._actor.node.name

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        """See `Sandbox.exec`."""
        if self._closed:
            return ExecResult(ExecStatus.SANDBOX_DEAD)
        result: ExecResult = await self._call(
            "exec", command, takes=timeout + KILL_GRACE_S, timeout=timeout, cwd=cwd
        )
        return result

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """See `Sandbox.read_file`."""
        data: bytes = await self._call("read_file", path, max_bytes=max_bytes)
        return data

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`."""
        await self._call("write_file", path, data)

    async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
        """See `Sandbox.list_dir`."""
        found: tuple[str, ...] = await self._call("list_dir", path, max_entries=max_entries)
        return found

    async def get_files(self, root: str, *, max_bytes: int) -> Mapping[str, bytes]:
        """See `Sandbox.get_files`."""
        files: Mapping[str, bytes] = await self._call("get_files", root, max_bytes=max_bytes)
        return files

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        """See `Sandbox.read_answer`."""
        if self._closed:
            return Answer(AnswerStatus.MISSING)
        answer: Answer = await self._call("read_answer", path, max_bytes=max_bytes)
        return answer

    async def put_files(self, files: Mapping[str, bytes], root: str = INPUT_DIR) -> None:
        """See `AgentSandbox.put_files`."""
        await self._call("put_files", dict(files), root)

    async def pack(self, roots: Sequence[str], *, max_bytes: int) -> tuple[bytes, ...]:
        """See `AgentSandbox.pack`."""
        packed: tuple[bytes, ...] = await self._call(
            "pack", tuple(roots), takes=3 * FILE_TIMEOUT_S, max_bytes=max_bytes
        )
        return packed

    async def unpack(self, packed: Sequence[bytes]) -> None:
        """See `AgentSandbox.unpack`."""
        await self._call("unpack", tuple(packed), takes=3 * FILE_TIMEOUT_S)

    async def _call(self, method: str, *args: Any, takes: float = FILE_TIMEOUT_S, **kwargs: Any) -> Any:
        """`takes`: seconds that the call may take on its node."""
        if self._closed:
            raise SandboxDead("closed")
        return await self._actor.call("call", self._id, method, args, kwargs, timeout=takes + ON_THE_WAY_S)
