"""What an actor on a node of a Ray cluster does: one pool of sandboxes, used by name from afar.

It needs nothing of Ray itself. Errors go back as values, because what is raised loses its type and its
fields on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox_rl import __version__
from sandbox_rl.errors import SandboxDead, SandboxFault, SandboxFileError, SandboxRLError, SetupError
from sandbox_rl.sandboxes.base import Sandbox, SandboxInfo
from sandbox_rl.sandboxes.config import BackendSettings, PoolSettings
from sandbox_rl.sandboxes.pool import HostCapacity, SandboxPool

SERVED = frozenset(
    ("exec", "read_file", "write_file", "list_dir", "get_files", "read_answer", "put_files", "pack", "unpack")
)
"""Methods of a sandbox that can be called from afar."""

CLOSE_TIMEOUT_S = 60.0


Failure = SandboxFileError | SandboxDead | SandboxFault | SetupError | ValueError
"""What a caller distinguishes; sent back as a value."""


def as_value(error: Exception) -> Failure:
    """`error`, ready to be sent: what a caller does not distinguish becomes a failure of the host's side."""
    if isinstance(error, SandboxFileError):
        return error
    for kind in (SandboxDead, SandboxFault, SetupError, ValueError):
        if isinstance(error, kind):
            return kind(str(error))
    return SandboxFault(f"{type(error).__name__}: {error}")


def placed(failure: Failure, where: str) -> Failure:
    """`failure`, with the node named in what is the host's."""
    if isinstance(failure, SandboxFault | SetupError):
        return type(failure)(f"node {where}: {failure}")
    return failure


@dataclass(frozen=True, slots=True)
class NodeReport:
    """How a node is.

    `free`: further sandboxes that it can take, below 0 when it has too many. `trouble`: why it makes
    none now.
    """

    free: int
    live: int
    trouble: str


@dataclass(slots=True)
class _Held:
    """One sandbox and the task in whose `async with` it lives."""

    opened: asyncio.Future[Sandbox]
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class SandboxNode:
    """One pool, its sandboxes by the names that the owner gives them.

    The owner renews its lease with each `report`; without one for `lease_s` seconds everything is
    destroyed and the process ends, so that nothing is left of an owner that is gone or out of reach.

    Args:
        settings: of the sandboxes.
        pool: of the pool; `max_live` holds for this node.
        lease_s: seconds that the node goes on without news of its owner.
    """

    def __init__(self, settings: BackendSettings, pool: PoolSettings, lease_s: float) -> None:
        self._capacity = HostCapacity(settings.limits, pool.reserve_mb)
        self._pool = SandboxPool(
            settings.backend(), limits=settings.limits, settings=pool, capacity=self._capacity
        )
        self._memory_mb = settings.limits.memory_mb
        self._max_live = pool.max_live
        self._lease_s = lease_s
        self._renewed = time.monotonic()
        self._held: dict[str, _Held] = {}
        self._unclaimed: set[str] = set()
        self._watch: asyncio.Task[None] | None = None

    async def start(self, version: str) -> SandboxInfo | Failure:
        """Enter the pool; says how this node isolates.

        Args:
            version: of this package where the owner runs, which must be the same here.
        """
        if version != __version__:
            return SetupError(
                f"sandbox-rl {__version__} is installed, the trainer has {version}; make them alike"
            )
        self._renewed = time.monotonic()
        try:
            await self._pool.__aenter__()
        except (SandboxRLError, OSError) as error:
            return as_value(error)
        self._watch = asyncio.create_task(self._end_without_owner(), name="lease")
        return self._pool.info

    async def report(self, claimed: frozenset[str]) -> NodeReport:
        """Renew the lease, and close what the owner has not claimed twice in a row.

        Args:
            claimed: names of all sandboxes that the owner has or waits for.
        """
        self._renewed = time.monotonic()
        unclaimed = set(self._held) - claimed
        for name in unclaimed & self._unclaimed:
            self._let_go(self._held[name])
        self._unclaimed = unclaimed
        free = min(self._max_live - len(self._held), self._capacity.free_mb() // self._memory_mb)
        trouble = "making sandboxes fails there" if self._pool.broken else self._capacity.lacking()
        return NodeReport(free=free, live=len(self._held), trouble=trouble)

    async def open(self, name: str, files: Mapping[str, bytes], timeout: float) -> Failure | None:
        """A new sandbox called `name`, made within `timeout` seconds."""
        if name in self._held:
            return SandboxFault(f"has a sandbox {name} already")
        held = _Held(asyncio.get_running_loop().create_future())
        self._held[name] = held
        held.task = asyncio.create_task(self._hold(held, files, timeout), name=name)
        held.task.add_done_callback(lambda _: self._forget(name))
        try:
            await asyncio.shield(held.opened)
        except (SandboxRLError, ValueError, OSError) as error:
            return as_value(error)
        except asyncio.CancelledError:
            self._let_go(held)
            raise
        return None

    async def call(self, name: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of one of the methods in `SERVED`, or a `Failure`."""
        held = self._held.get(name)
        served = held is not None and held.opened.done() and method in SERVED
        function = getattr(held.opened.result(), method, None) if held is not None and served else None
        if function is None:
            return SandboxFault(f"has no sandbox {name} that could {method}")
        try:
            return await function(*args, **kwargs)
        except (SandboxRLError, ValueError, OSError) as error:
            return as_value(error)

    async def close(self, name: str) -> None:
        """Destroy it, if it is there; returns when nothing is left of it."""
        held = self._held.get(name)
        if held is not None and held.task is not None:
            self._let_go(held)
            await asyncio.wait([held.task], timeout=CLOSE_TIMEOUT_S)

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(self.close(name) for name in list(self._held)))
        await self._pool.__aexit__(None, None, None)

    async def _hold(self, held: _Held, files: Mapping[str, bytes], timeout: float) -> None:
        try:
            async with self._pool.sandbox(files, timeout=timeout) as sandbox:
                held.opened.set_result(sandbox)
                await held.closing.wait()
        except (SandboxRLError, ValueError, OSError) as error:
            _fail(held.opened, error)

    def _forget(self, name: str) -> None:
        """Its task has ended, perhaps before it began."""
        _fail(self._held.pop(name).opened, SandboxFault("closed before it was made"))

    def _let_go(self, held: _Held) -> None:
        if not held.closing.is_set() and not held.opened.done() and held.task is not None:
            held.task.cancel()  # once: its clean-up is not to be interrupted
        held.closing.set()

    async def _end_without_owner(self) -> None:
        while (left := self._renewed + self._lease_s - time.monotonic()) > 0:  # noqa: ASYNC110 - it moves
            await asyncio.sleep(left)
        self._watch = None  # which is this task
        with contextlib.suppress(SandboxRLError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.stop()
        os._exit(0)


def _fail(future: asyncio.Future[Sandbox], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # waited for or not, it is not "never retrieved"
