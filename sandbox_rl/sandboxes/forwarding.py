"""Sandboxes that hand every call on: their methods, written out once, and a deadline for each call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from sandbox_rl.errors import SandboxFault
from sandbox_rl.sandboxes.base import ANSWER_FILE, WORKING_DIR, AnswersCalls, Sandbox
from sandbox_rl.types import Answer, ExecResult

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate[Any, P], Awaitable[T]]
"""Of `Sandbox`, as the Protocol has it: its name says which one is called."""

GRACE_S = 15.0
"""How long a command may outlast its own time. A backend kills what runs too long by itself, well before."""
FILES_S = 60.0
"""Seconds for a call on files, which has no time of its own; our backends give up after 30."""


class ForwardingSandbox:
    """Fulfils `Sandbox`: every call goes through `_call`, which says what becomes of it."""

    @property
    def id(self) -> str:
        raise NotImplementedError

    async def _call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of that method of the sandbox behind."""
        raise NotImplementedError

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        return await self._call(Sandbox.exec, command, timeout=timeout, cwd=cwd)

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        return await self._call(Sandbox.read_file, path, max_bytes=max_bytes)

    async def write_file(self, path: str, data: bytes) -> None:
        await self._call(Sandbox.write_file, path, data)

    async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
        return await self._call(Sandbox.list_dir, path, max_entries=max_entries)

    async def get_files(self, root: str, *, max_bytes: int) -> Mapping[str, bytes]:
        return await self._call(Sandbox.get_files, root, max_bytes=max_bytes)

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        return await self._call(Sandbox.read_answer, path, max_bytes=max_bytes)


class WatchedSandbox(ForwardingSandbox):
    """A call that does not return is a `SandboxFault`: no policy can hold up the host.

    Args:
        sandbox: the one that does the work.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @property
    def id(self) -> str:
        return self._sandbox.id

    async def _call(self, method: Method[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        own = kwargs.get("timeout")
        seconds = own + GRACE_S if isinstance(own, int | float) else FILES_S
        try:
            async with asyncio.timeout(seconds) as limit:
                result: T = await getattr(self._sandbox, method.__name__)(*args, **kwargs)
                return result
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SandboxFault(
                f"sandbox {self.id}: {method.__name__} did not return within {seconds:.0f} s; "
                "its host side hangs"
            ) from error


def watched(sandbox: Sandbox) -> Sandbox:
    """With deadlines; one that answers whole calls by itself has nothing behind it that could hang."""
    return sandbox if isinstance(sandbox, AnswersCalls) else WatchedSandbox(sandbox)
