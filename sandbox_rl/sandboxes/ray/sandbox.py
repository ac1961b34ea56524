"""A sandbox on another node: every call goes to the actor that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandbox_rl.errors import SandboxDead
from sandbox_rl.sandboxes.agent_sandbox import FILE_TIMEOUT_S, KILL_GRACE_S, AgentSandbox
from sandbox_rl.sandboxes.base import ANSWER_FILE, WORKING_DIR
from sandbox_rl.sandboxes.forwarding import ForwardingSandbox, Method, P, T
from sandbox_rl.sandboxes.ray.cluster import NodeActor
from sandbox_rl.types import Answer, AnswerStatus, ExecResult, ExecStatus

ON_THE_WAY_S = 15.0  # for request and reply, beyond what the call itself may take on its node
SEVERAL = ("pack", "unpack")  # which take up to three requests


class RemoteSandbox(ForwardingSandbox):
    """Fulfils `Sandbox`, and what snapshots need, by the node's own deadlines plus time on the way.

    Attributes:
        closed: set by its owner, who destroys it: from then on it counts as dead.
    """

    def __init__(self, id: str, actor: NodeActor) -> None:
        self._id = id
        self._actor = actor
        self.closed = False

    @property
    def id(self) -> str:
        return self._id

    @property
    def node(self) -> str:
        """Host and the beginning of the id of the node that it lives on."""
        return self._actor.node.name

    async def _call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.closed:
            raise SandboxDead("closed")
        name, own = method.__name__, kwargs.get("timeout")
        takes = FILE_TIMEOUT_S * (3 if name in SEVERAL else 1)
        if isinstance(own, int | float):
            takes = own + KILL_GRACE_S
        call = ("call", self._id, name, args, kwargs)
        result: T = await self._actor.call(*call, timeout=takes + ON_THE_WAY_S)
        return result

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        if self.closed:
            return ExecResult(ExecStatus.SANDBOX_DEAD)
        return await super().exec(command, timeout=timeout, cwd=cwd)

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        if self.closed:
            return Answer(AnswerStatus.MISSING)
        return await super().read_answer(path, max_bytes=max_bytes)

    async def put_files(self, files: Mapping[str, bytes]) -> None:
        await self._call(AgentSandbox.put_files, dict(files))

    async def pack(self, roots: Sequence[str], *, max_bytes: int) -> Sequence[bytes]:
        return await self._call(AgentSandbox.pack, tuple(roots), max_bytes=max_bytes)

    async def unpack(self, packed: Sequence[bytes], root: str = "/") -> None:
        await self._call(AgentSandbox.unpack, tuple(packed), root)
