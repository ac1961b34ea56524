"""What the backends share whose sandboxes have an agent: a sandbox from its making to its end."""

from __future__ import annotations

import asyncio
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar

from sandbox_rl.errors import SandboxDead, SandboxFault, SandboxFileError
from sandbox_rl.sandboxes.agent_sandbox import AgentSandbox
from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.sandboxes.config import DockerSettings, EmbeddedSettings
from sandbox_rl.sandboxes.egress.proxy import FilteringProxy, SharedCapacity
from sandbox_rl.sandboxes.egress.rules import NetworkRules
from sandbox_rl.sandboxes.names import check_files

S = TypeVar("S", EmbeddedSettings, DockerSettings)
T = TypeVar("T")


Connected = tuple[AgentSandbox, socket.socket | None]
"""A sandbox whose agent has said hello; where that listens for the egress proxy, if it has a network."""


class AgentBackend(ABC, Generic[S]):
    """Makes sandboxes that have an agent; a backend says how one comes to be and ends.

    Args:
        rules: for the network, instead of the settings' own.
    """

    _needs = ""
    """Added to what is said of a sandbox that died before anything ran in it."""

    def __init__(self, settings: S, rules: NetworkRules | None) -> None:
        self._settings: S = settings
        self._rules = rules or NetworkRules(settings.network, settings.allowlist)
        self._capacity = SharedCapacity()
        self._making = asyncio.Semaphore(settings.create_concurrency)
        self._info: SandboxInfo | None = None

    @property
    def info(self) -> SandboxInfo:
        """Tier, and what it lacks here; valid once entered."""
        if self._info is None:
            raise RuntimeError(f"{type(self).__name__}.info is known once the backend has been entered")
        return self._info

    @abstractmethod
    def _connected(self, name: str) -> AbstractAsyncContextManager[Connected]:
        """A sandbox of that name; leaving the context destroys it whatever happened, cancellation included.

        Raises:
            SandboxDead: it has ended before; the message is what it said, if anything.
            SandboxFault, OSError: it could not be made.
        """

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[AgentSandbox]:
        check_files(files or {}, self._settings.limits)
        name = f"sandbox-rl-{secrets.token_hex(8)}"
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout), self._making:
                    sandbox, listener = await stack.enter_async_context(self._connected(name))
                    if listener is not None:
                        limits = self._settings.network_limits
                        proxy = FilteringProxy(name, listener, self._rules, limits, self._capacity)
                        stack.callback(proxy.close)
                        proxy.start()
                    await sandbox.put_files(files or {})
            except TimeoutError as error:
                raise SandboxFault(f"no sandbox within {timeout:g} s") from error
            except SandboxFileError as error:
                raise SandboxFault(f"the files of a new sandbox cannot be placed: {error}") from error
            except SandboxDead as error:
                # Nothing of the policy's has run yet, so this is ours.
                raise SandboxFault(f"a new sandbox died: {error}{self._needs}") from error
            except OSError as error:
                raise SandboxFault(f"a sandbox cannot be made: {error.strerror}") from error
            yield sandbox


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """What comes of `work`, which goes on even if its caller is cancelled: that is raised afterwards."""
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError from task.exception()
    return task.result()
