"""One publication on its way to several servers: who has failed, and what has been sent so far."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from safetensors.torch import load_file

from sandbox_rl.errors import EngineFault
from sandbox_rl.http_client import Address
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.source import Servers
from sandbox_rl.training.publication import routes
from sandbox_rl.training.publication.payload import Checksums
from sandbox_rl.training.publication.transports import HostCopy, Payload, Transport


@dataclass(frozen=True, slots=True)
class OwnServer:
    """Where each process sends to the server on its own card."""

    servers: Servers
    number: int


class Sending:
    """What one process sends to its servers; one that fails a step takes no part in the next ones.

    Args:
        servers: that this process sends to.
        collective: whether they receive all at once, so that all fail with one.
        keeps: whether copies are kept for servers that are started again.
    """

    def __init__(
        self, servers: Sequence[VLLMServer], *, collective: bool = False, keeps: bool = False
    ) -> None:
        self._servers = list(servers)
        self._collective = collective
        self._keeps = keeps
        self._copies: list[HostCopy] = []
        self._checksums: dict[str, tuple[list[int], int]] = {}
        self.failed: dict[VLLMServer, EngineFault] = {}

    @property
    def left(self) -> Sequence[VLLMServer]:
        """Those that have done everything so far."""
        return [server for server in self._servers if server not in self.failed]

    @property
    def reasons(self) -> Mapping[Address, str]:
        """Why each that has failed did."""
        return {server.address: str(error) for server, error in self.failed.items()}

    async def each(self, act: Callable[[Sequence[VLLMServer]], Awaitable[None]]) -> None:
        """Have all that are left do something; what fails is noted."""
        left = self.left
        groups = [left] if self._collective and left else [[server] for server in left]
        results = await asyncio.gather(*map(act, groups), return_exceptions=True)
        for group, result in zip(groups, results, strict=True):
            if isinstance(result, EngineFault):
                self.failed |= dict.fromkeys(group, result)
            elif isinstance(result, BaseException):
                raise result

    async def start(self) -> None:
        """Begin the update."""
        await self.each(lambda servers: routes.control_all(servers, "/start_weight_update"))

    async def send(self, part: Payload) -> None:
        """Send some of the weights."""
        self._checksums |= part.checksums
        if self._keeps:
            self._copies.append(await asyncio.to_thread(part.copy))
        await self.each(part.send)

    async def finish(self, version: int) -> None:
        """End the update and hold each server against what was sent."""
        await self.each(lambda servers: routes.finish_update(servers, self._checksums, version))

    def kept(self, version: int) -> Kept:
        """All that was sent."""
        return Kept(self._copies, self._checksums, version)


async def without(
    servers: Servers, those: Sequence[VLLMServer], failed: Mapping[Address, str]
) -> Sequence[VLLMServer]:
    """Those of them that have not failed; each of the others is ended and started again."""
    if those and all(server.address in failed for server in those):
        raise EngineFault(failed[those[0].address])
    for server in those:
        why = failed.get(server.address)
        if why is not None and not await servers.replace(server, why):
            raise EngineFault(why)
    return [server for server in those if server.address not in failed]


@dataclass(eq=False)
class Kept:
    """The weights that were published last, in memory of this host."""

    copies: Sequence[HostCopy]
    checksums: Checksums
    version: int

    async def load(self, server: VLLMServer, by: Transport | None = None) -> None:
        """Have a server that was started again load and verify them.

        Args:
            by: the way to a server that cannot read the copy, on another host.

        Raises:
            EngineFault: it does not.
        """
        if by is not None:
            await self._send(server, by)
            return
        await routes.rpc(server, "sandbox_rl_load", json.dumps([copy.path for copy in self.copies]))
        await routes.after_load([server], self.checksums, self.version)

    async def _send(self, server: VLLMServer, transport: Transport) -> None:
        def parts_of(copy: HostCopy) -> Sequence[Payload]:
            tensors = load_file(copy.path)
            return list(transport.parts(iter(tensors.items()), next(iter(tensors.values())).dtype))

        sending = Sending([server], collective=transport.collective)
        await sending.each(transport.connect)
        await sending.start()
        for copy in self.copies:
            for part in await asyncio.to_thread(parts_of, copy):
                await sending.send(part)
                part.close()
        await sending.finish(self.version)
        for fault in sending.failed.values():
            raise fault

    def close(self) -> None:
        """Free them."""
        for copy in self.copies:
            copy.close()
