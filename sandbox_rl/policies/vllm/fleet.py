"""The managed servers of a run, as one: started together, gone together, each on its own in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.policies.vllm.source import Servers

__all__ = ["ManagedServers", "log_of"]


class ManagedServers(Servers):
    """Servers of this process; none is started again but by `supervisor.py`.

    Args:
        members: at least one, all of the same model.
    """

    def __init__(self, members: Sequence[ManagedServer]) -> None:
        super().__init__([member.client for member in members])
        self.members = tuple(members)
        self._of = dict(zip(self.servers, members, strict=True))

    def move_logs(self, path: Path) -> None:
        """Continue the logs elsewhere on the same file system; see `log_of`."""
        for number, member in enumerate(self.members):
            member.move_log(log_of(path, number, len(self.members)))

    async def start(self) -> None:
        """Start all children and return at once."""
        for member in self.members:
            await member.start()

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
            EngineFault: it is gone for good.
        """
        await self._of[server].recovered()

    @property
    def up(self) -> Sequence[VLLMServer]:
        """Those that can be given weights now; one that is being started again gets them at its start."""
        return [member.client for member in self.members if member.up]

    async def some_up(self) -> None:
        """Wait until one of them is there.

        Raises:
            EngineFault: one of them is gone for good.
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
        await self._of[server].condemn(why)
        return True


def log_of(path: Path, number: int, servers: int) -> Path:
    """Of one of several servers: `vllm-1.log` for `vllm.log`, which it is where there is but one."""
    return path if servers == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
