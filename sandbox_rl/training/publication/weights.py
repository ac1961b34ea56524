"""The one owner of published weights: what servers sample with, under which version, and whether they sleep.

    stage → pause (requests freeze) → start → send → finish, repair, verify → version → resume

and for servers that sleep while the trainer updates

    stage → wake the weights → start → send → finish, repair, verify → version → wake the cache, resume

Everything is gathered before requests freeze. The version is written when the weights are verified and before
any token can be sampled with them. A publication that fails half-way raises on every process and leaves the
servers paused: a mixture of old and new weights is never sampled from.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from accelerate import PartialState
from torch import nn

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.check import ServerFacts
from sandbox_rl.training.agreement import together
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication import routes
from sandbox_rl.training.publication.base import Timing, shared_version
from sandbox_rl.training.publication.group import GroupTransport
from sandbox_rl.training.publication.merge import checkpoint_tensors
from sandbox_rl.training.publication.transports import (
    IpcTransport,
    Payload,
    ShmTransport,
    Tensors,
    Transport,
)

__all__ = ["PublishedWeights", "Servers", "transport_of"]


class Servers(Protocol):
    """Servers that have been entered."""

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """All of them."""
        ...

    @property
    def facts(self) -> Sequence[ServerFacts]:
        """What each says about itself."""
        ...

    async def recovered(self, server: VLLMServer) -> None:
        """Wait until it is there, where someone is restarting it.

        Raises:
            EngineFault: it is gone for good.
        """
        ...


class PublishedWeights:
    """Weights that servers have been given.

    Args:
        servers: on the main process, which sends; None elsewhere. They may be entered later.
        loop: where the servers' connections live; `publish` and `sleep` are called from outside of it.
        transfer: `shm`, `ipc`, `nccl` or `gloo`.
        sleeps: whether servers sleep between `sleep` and `publish`.
    """

    served = True

    def __init__(
        self, servers: Servers | None, loop: LoopThread, *, transfer: str = "shm", sleeps: bool = False
    ) -> None:
        self._servers = servers
        self._loop = loop
        self._transport = transport_of(transfer)
        self._sleeps = sleeps
        self._connected = False
        self._published = False
        self._mixed = False  # a publication has begun and not ended well
        self._last_good: Payload | None = None
        self._wanted = asyncio.Event()
        self._wanted.set()
        self.version = shared_version()
        """0 before the first publication: servers have loaded those weights by themselves."""
        self.asleep = False
        self.timing = Timing()

    def current(self, step: int) -> bool:
        """Whether servers are awake and hold the weights after `step` updates, verified."""
        return self._published and not (self._mixed or self.asleep) and self.version.value == step

    def publish(self, model: nn.Module, step: int) -> int:
        """See `Weights.publish`."""
        PartialState().wait_for_everyone()  # no process may still be rolling out with the old weights
        if self.asleep and torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the update has freed is the servers' now
        self._mixed = True
        tensors = checkpoint_tensors(model)
        marks = [time.monotonic()]
        failure: Exception | None = None
        try:
            if self._servers is not None:
                self._send(self._servers, tensors, marks)
        except Exception as error:
            failure = error
        for _ in tensors:  # gathering a sharded tensor takes every process
            pass
        with together():
            if failure is not None:
                raise failure
        self.version.value = step
        with together():
            if self._servers is not None:
                self._loop.run(routes.resume(self._servers.servers, asleep=self.asleep))
        self.asleep, self._mixed, self._published = False, False, True
        marks.append(time.monotonic())
        if self._servers is not None:
            self.timing = Timing(*(end - start for start, end in itertools.pairwise(marks)))
        return step

    def sleep(self) -> None:
        """See `Weights.sleep`; nothing may be in flight."""
        if self.asleep or not self._sleeps:
            return
        PartialState().wait_for_everyone()
        with together():
            if self._servers is not None:
                self._loop.run(self._put_to_sleep(self._servers.servers))
        self.asleep = True

    def close(self) -> None:
        """Free what is kept for servers that are started again."""
        self._keep(None)
        self._transport.close()

    # --- for the supervisor of a server, in the loop --------------------------------------------------

    async def wanted(self) -> None:
        """Wait until servers should run: while they sleep their memory is the trainer's."""
        await self._wanted.wait()

    async def restore(self, server: VLLMServer) -> None:
        """Give a server that was started again the last published weights.

        Raises:
            EngineFault: they are not kept, or it does not take them.
        """
        if not self._connected:
            return  # it has loaded the first ones by itself
        await self._transport.connect([server])
        if self.asleep or not self._published:
            return  # the weights are about to come, or are right
        if self._last_good is None:
            raise EngineFault(
                "a restarted server cannot get the newest weights back with policy.transfer ipc, nccl or "
                "gloo, which keep no copy; go on from the last checkpoint with --resume, or set "
                "policy.transfer=shm"
            )
        await self._load([server], self._last_good)
        self._mixed = False  # it replaced the one that a broken publication may have left behind

    # --- parts of a publication -----------------------------------------------------------------------

    def _send(self, servers: Servers, tensors: Tensors, marks: list[float]) -> None:
        """From staged to verified; adds the times at which the next part began."""
        self._loop.run(self._connect(servers))
        payload = self._transport.stage(tensors, getattr(torch, servers.facts[0].dtype))
        marks.append(time.monotonic())
        try:
            self._loop.run(routes.pause(servers.servers, asleep=self.asleep))
            marks.append(time.monotonic())
            self._loop.run(self._load(servers.servers, payload))
        except BaseException:
            payload.close()  # what was published before stays what a restarted server gets
            raise
        marks.append(time.monotonic())
        self._keep(payload)

    async def _connect(self, servers: Servers) -> None:
        """Wait for those that are being restarted; prepare all the first time."""
        self._wanted.set()
        for server in servers.servers:
            await servers.recovered(server)
        if not self._connected:
            await self._transport.connect(servers.servers)
            self._connected = True

    async def _load(self, servers: Sequence[VLLMServer], payload: Payload) -> None:
        await routes.control_all(servers, "/start_weight_update")
        await payload.send(servers)
        await routes.finish_update(servers, payload.checksums)

    async def _put_to_sleep(self, servers: Sequence[VLLMServer]) -> None:
        self._wanted.clear()  # one that dies is started again only when it is wanted
        await routes.sleep(servers)

    def _keep(self, payload: Payload | None) -> None:
        before, self._last_good = self._last_good, payload
        if before is not None:
            before.close()
        if payload is not None and not payload.lasting:
            payload.close()
            self._last_good = None


def transport_of(transfer: str) -> Transport:
    """By the name that `policy.transfer` gives it."""
    if transfer == "shm":
        return ShmTransport()
    return IpcTransport() if transfer == "ipc" else GroupTransport(transfer)
