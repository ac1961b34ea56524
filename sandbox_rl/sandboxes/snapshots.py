"""Copies of a sandbox's files, and new sandboxes that start from such a copy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from sandbox_rl.sandboxes.agent_sandbox import AgentSandbox

ROOTS = ("/testbed", "/tmp", "/home/sandbox")
"""The writable directories that are copied; shared memory and processes are not."""


class MakesAgentSandboxes(Protocol):
    """A backend whose sandboxes have an agent."""

    def sandbox(
        self, files: None = None, *, timeout: float = 60.0
    ) -> AbstractAsyncContextManager[AgentSandbox]: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Directories, regular files and links with their modes: (path, mode, content) by turns."""

    entries: tuple[bytes, ...]


async def take_snapshot(sandbox: AgentSandbox, *, max_bytes: int = 64 << 20) -> Snapshot:
    """Copy the files of `sandbox`, which is stopped meanwhile and goes on afterwards.

    Raises:
        SandboxFileError: they exceed `max_bytes` together.
        SandboxDead, SandboxFault.
    """
    return Snapshot(tuple(await sandbox.pack(ROOTS, max_bytes=max_bytes)))


@asynccontextmanager
async def branch(
    backend: MakesAgentSandboxes, snapshot: Snapshot, n: int, *, timeout: float = 60.0
) -> AsyncIterator[tuple[AgentSandbox, ...]]:
    """`n` new sandboxes with the files of `snapshot`; leaving destroys them all.

    Raises:
        SandboxFault: one could not be made within `timeout` seconds; none is left then.
    """
    async with AsyncExitStack() as stack:

        async def one() -> AgentSandbox:
            sandbox = await stack.enter_async_context(backend.sandbox(timeout=timeout))
            await sandbox.unpack(snapshot.entries)
            return sandbox

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one()) for _ in range(n)]
        yield tuple(task.result() for task in tasks)
