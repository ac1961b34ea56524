"""The managed servers of a run, as one: started together, gone together, each on its own in between.

Servers are watched while a run lasts, managed ones and others, so that one which was started again gets the
weights that it should have.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from sandbox_rl.errors import EngineFault
from sandbox_rl.http_client import Address, Refused, Unreachable
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.policies.vllm.source import ExternalServers, Servers


class ManagedServers(Servers):
    """Servers of this process; none is started again but by `SupervisedServers`.

    Args:
        members: at least one, all of the same model.
    """

    def __init__(self, members: Sequence[ManagedServer]) -> None:
        super().__init__([member.client for member in members])
        self.members = tuple(members)
        self._of = dict(zip(self.servers, members, strict=True))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Of all, for other processes."""
        return tuple(server.address for server in self.servers)

    def move_logs(self, path: Path) -> None:
        """Continue the logs elsewhere on the same file system; see `log_of`."""
        for number, member in enumerate(self.members):
            member.move_log(log_of(path, number, len(self.members)))

    async def start(self) -> None:
        """Start all children and return at once; where one cannot be started, none is left."""
        try:
            for member in self.members:
                await member.start()
        except BaseException:
            await self.stop()
            raise

    async def __aenter__(self) -> Self:
        """Wait until all answer and fit; all are ended when one does not."""
        checks = [asyncio.ensure_future(member.check()) for member in self.members]
        try:
            self.facts = await asyncio.gather(*checks)
        except BaseException:
            for check in checks:
                check.cancel()
            await asyncio.gather(*checks, return_exceptions=True)
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End all children and everything of them, all at once."""
        await asyncio.gather(*(member.stop() for member in self.members))

    async def recovered(self, server: VLLMServer) -> None:
        """Wait for a restart of this server that is going on.

        Raises:
            EngineFault: it is gone permanently.
        """
        await self._of[server].recovered()

    @property
    def up(self) -> Sequence[VLLMServer]:
        """Those that can be given weights now; one that is being started again gets them at its start."""
        return [member.client for member in self.members if member.up]

    async def some_up(self) -> None:
        """Wait until one of them is there.

        Raises:
            EngineFault: one of them is gone permanently.
        """
        waits = [asyncio.ensure_future(member.recovered()) for member in self.members]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for member in self.members:
            if member.lost is not None:
                raise EngineFault(member.lost)

    async def replace(self, server: VLLMServer, why: str) -> bool:
        """End a server that did not take its weights, which has it started again with them."""
        await self._of[server].end_because(why)
        return True


def log_of(path: Path, number: int, servers: int) -> Path:
    """Of one of several servers: `vllm-1.log` for `vllm.log`, which it is where there is but one."""
    return path if servers == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""Between two looks at the version of a server that someone else runs."""


class KeepsWeights(Protocol):
    """Whoever publishes weights, as the supervisor of servers needs it."""

    async def wanted(self) -> None:
        """Wait until servers should run: while they sleep their memory is the trainer's."""
        ...

    async def restore(self, server: VLLMServer) -> None:
        """Give a server that was started again the weights that were published last.

        Raises:
            EngineFault: nobody can.
        """
        ...


class _Watched(ABC):
    """An async context manager that enters servers and watches each; what happens to one stops no other."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Servers:
        await self._servers.__aenter__()
        self._watchers = [
            asyncio.create_task(self._watch(number), name=f"watch {server.address}")
            for number, server in enumerate(self._servers.servers)
        ]
        return self._servers

    async def __aexit__(self, *exc: object) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await self._servers.__aexit__(*exc)

    @abstractmethod
    async def _watch(self, number: int) -> None: ...


class SupervisedServers(_Watched):
    """Managed servers, each started again when it dies or hangs.

    Args:
        restarts: how often each may be started again.
    """

    def __init__(self, fleet: ManagedServers, weights: KeepsWeights, *, restarts: int) -> None:
        super().__init__(fleet)
        self._members = fleet.members
        self._weights = weights
        self._restarts = restarts
        self._left = [restarts for _ in fleet.members]

    async def _watch(self, number: int) -> None:
        server, several = self._members[number], len(self._members) > 1
        name = f"vLLM server {number} of {len(self._members)}" if several else "vLLM server"
        while True:
            reason: str | None = await server.failed()
            while reason is not None:
                await self._weights.wanted()
                if not self._left[number]:
                    why = f"the {name} failed permanently after {self._restarts} restarts: {reason}"
                    logger.error("%s", why)
                    server.give_up(why)
                    return
                self._left[number] -= 1
                done = self._restarts - self._left[number]
                logger.warning("%s: %s; restart %d of %d", name, reason, done, self._restarts)
                reason = await self._restarted(server)

    async def _restarted(self, server: ManagedServer) -> str | None:
        """Why a restart failed, if it did: what ends a server can end the next one as it starts."""
        try:
            await server.restart(self._weights.restore)
        except Exception as error:
            return f"it could not be started again: {error}"
        return None


class RestoredServers(_Watched):
    """External servers of a run that publishes: one that someone starts again gets the newest weights again.
    Who samples asks each for its version (`policy.py`) and waits meanwhile.

    Args:
        weights: published last; `weights.restore` looks itself whether they are missing.
    """

    def __init__(self, external: ExternalServers, weights: KeepsWeights) -> None:
        super().__init__(external)
        self._weights = weights

    async def _watch(self, number: int) -> None:
        server = self._servers.servers[number]
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if await server.weights_version() is None:
                    await self._weights.restore(server)
                    if (version := await server.weights_version()) is not None:
                        logger.warning("%s was started again; it got version %d", server.address, version)
            except (Refused, Unreachable):
                pass  # whoever runs it starts it again, or not: its turns are waited for
            except Exception as error:  # whatever it is, the next look tries again
                logger.warning("%s: the newest weights are sent again: %s", server.address, error)
