"""A sandbox whose calls have a deadline of ours, whatever its backend does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from sandbox_rl.errors import SandboxFault
from sandbox_rl.sandboxes.base import ANSWER_FILE, WORKING_DIR, AnswersCalls, Sandbox
from sandbox_rl.types import Answer, ExecResult

__all__ = ["WatchedSandbox", "watched"]

GRACE_S = 15.0
"""How long a command may outlast its own time. A backend kills what runs too long by itself, well before."""
FILES_S = 60.0
"""Seconds for a call on files, which has no time of its own; our backends give up after 30."""


class WatchedSandbox:
    """Fulfils `Sandbox`; a call that does not return is a `SandboxFault`: no policy can hold up the host.

    Args:
        sandbox: the one that does the work.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @property
    def id(self) -> str:
        """Its identity."""
        return self._sandbox.id

    async def exec(self, command: str, *, timeout: float, cwd: str = WORKING_DIR) -> ExecResult:
        """See `Sandbox.exec`."""
        async with self._within(timeout + GRACE_S, "a command"):
            return await self._sandbox.exec(command, timeout=timeout, cwd=cwd)

    async def read_file(self, path: str, *, max_bytes: int) -> bytes:
        """See `Sandbox.read_file`."""
        async with self._within(FILES_S, "reading a file"):
            return await self._sandbox.read_file(path, max_bytes=max_bytes)

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`."""
        async with self._within(FILES_S, "writing a file"):
            await self._sandbox.write_file(path, data)

    async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
        """See `Sandbox.list_dir`."""
        async with self._within(FILES_S, "listing a directory"):
            return await self._sandbox.list_dir(path, max_entries=max_entries)

    async def get_files(self, root: str, *, max_bytes: int) -> Mapping[str, bytes]:
        """See `Sandbox.get_files`."""
        async with self._within(FILES_S, "reading files"):
            return await self._sandbox.get_files(root, max_bytes=max_bytes)

    async def read_answer(self, path: str = ANSWER_FILE, *, max_bytes: int = 65_536) -> Answer:
        """See `Sandbox.read_answer`."""
        async with self._within(FILES_S, "reading the answer"):
            return await self._sandbox.read_answer(path, max_bytes=max_bytes)

    @asynccontextmanager
    async def _within(self, seconds: float, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SandboxFault(
                f"sandbox {self.id}: {what} did not return within {seconds:.0f} s; its host side hangs"
            ) from error


def watched(sandbox: Sandbox) -> Sandbox:
    """With deadlines; one that answers whole calls by itself has nothing behind it that could hang."""
    return sandbox if isinstance(sandbox, AnswersCalls) else WatchedSandbox(sandbox)
