"""The one owner of published weights: what servers sample with, under which version, and whether they sleep.

    stage → pause (requests freeze) → start → send → finish, repair, verify → version → resume

and for servers that sleep while the trainer updates

    stage → wake the weights → start → send → finish, repair, verify → version → wake the cache, resume

By `shm` everything is gathered before requests freeze; by the other ways it is gathered and sent in parts, so
that no card holds the whole model once more. The version is written when the weights are verified and before
any token can be sampled with them. A publication that fails on all servers raises on every process and leaves
them paused: a mixture of old and new weights is never sampled from. A server that fails alone is ended, and
started again with the new weights while the others go on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.policies.vllm.source import Servers
from sandbox_rl.training.agreement import together
from sandbox_rl.training.host_memory import free_memory
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication import routes
from sandbox_rl.training.publication.base import Timing, Weights
from sandbox_rl.training.publication.group import transport_of
from sandbox_rl.training.publication.merge import checkpoint_tensors
from sandbox_rl.training.publication.sending import Kept, OwnServer, Sending, without
from sandbox_rl.training.publication.transports import Payload, Tensors, Transport


class PublishedWeights(Weights):
    """Weights that servers have been given.

    Args:
        servers: on the main process, which pauses and resumes them; None elsewhere. Entered later, maybe.
        loop: where the servers' connections live; `publish` and `sleep` are called from outside of it.
        transfer: `shm`, `ipc`, `nccl` or `gloo`, or a `Transport`.
        sleeps: whether servers sleep between `sleep` and `publish`.
        keeps: whether the main process keeps a copy in memory for servers that are started again.
        external: someone else runs them: they may be started again between two publications, and may be on
            another host.
        own: with several processes each of which sends to one server, that; otherwise the main one sends to
            all.
    """

    served = True

    def __init__(
        self,
        servers: Servers | None,
        loop: LoopThread,
        *,
        transfer: str | Transport = "shm",
        sleeps: bool = False,
        keeps: bool = False,
        external: bool = False,
        own: OwnServer | None = None,
    ) -> None:
        super().__init__()  # version 0 before the first publication: servers have loaded those by themselves
        self._servers = servers
        self._loop = loop
        self._transport = transport_of(transfer) if isinstance(transfer, str) else transfer
        self._sleeps = sleeps
        self._keeps = keeps and servers is not None
        self._external = external
        self._own = own
        self._connected: list[VLLMServer] = []
        self._published = False
        self._mixed = False  # a publication has begun and not ended well
        self._suspect: set[VLLMServer] = set()  # what it has left behind
        self._last_good: Kept | None = None
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._changing = asyncio.Lock()  # held while weights or the set of servers that have them change

    def current(self, step: int) -> bool:
        """Whether servers are awake and hold the weights after `step` updates, verified."""
        return self._published and not (self._mixed or self.asleep) and self.version.value == step

    def publish(self, model: nn.Module, step: int) -> int:
        """See `Weights.publish`."""
        PartialState().wait_for_everyone()  # no process may still be rolling out with the old weights
        if self.asleep:
            free_memory()  # what the update has freed is the servers' now
        self._mixed = True
        up: Sequence[VLLMServer] = []
        marks = [time.monotonic()]
        with ExitStack() as taking_part:
            with together():
                if self._servers is not None:
                    up = taking_part.enter_context(self._loop.entered(self._part(self._servers)))
                    self._suspect = set(up)
            left = self._send(up, checkpoint_tensors(model), step, marks)
            self.version.value = step
            with together():
                if self._servers is not None:
                    self._loop.run(self._resume(self._servers, left))
        self.asleep, self._mixed, self._published = False, False, True
        self._suspect.clear()
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
                self._loop.run(self._put_to_sleep(self._servers))
        self.asleep = True

    def close(self) -> None:
        """Free what is kept for servers that are started again."""
        if self._last_good is not None:
            self._last_good.close()
        self._transport.close()

    # --- for the supervisor of servers, in the loop ---------------------------------------------------

    async def wanted(self) -> None:
        """Wait until servers should run: while they sleep their memory is the trainer's."""
        await self._wanted.wait()

    async def restore(self, server: VLLMServer) -> None:
        """Give a server that was started again the last published weights, between two publications.

        Raises:
            EngineFault: they are not kept, or it does not take them.
        """
        async with self._changing:
            self._connected = []  # it has to be connected before the next publication, a group as a whole
            if self.asleep or not self._published:
                return  # the weights are about to come, or it has loaded them by itself
            if self._last_good is None:
                raise EngineFault("no copy of the newest weights is kept; go on with --resume")
            if self._external and await routes.version_of(server) is not None:
                return  # a publication has come in between
            far = self._external and self._transport.collective
            await self._last_good.load(server, self._transport if far else None)
            self._suspect.discard(server)  # it replaced one that a broken publication had left behind
            self._mixed = self._mixed and bool(self._suspect)

    # --- parts of a publication -----------------------------------------------------------------------

    @asynccontextmanager
    async def _part(self, servers: Servers) -> AsyncIterator[Sequence[VLLMServer]]:
        """Those that take part: all that are there. Nobody joins them while open."""
        self._wanted.set()
        while True:
            await servers.some_up()
            async with self._changing:
                if up := servers.up:
                    yield up
                    return

    def _send(
        self, up: Sequence[VLLMServer], tensors: Tensors, step: int, marks: list[float]
    ) -> Sequence[VLLMServer]:
        """From gathered to verified; those that hold the weights. Adds the times at which a phase began."""
        sending = Sending(self._targets(up), collective=self._transport.collective, keeps=self._keeps)
        parts, failure = self._first_part(sending, tensors)
        marks.append(time.monotonic())
        paused = Sending(up)
        try:
            with together():
                if failure is not None:
                    raise failure
                if self._servers is not None:
                    asleep = self.asleep
                    self._loop.run(paused.each(lambda some: routes.pause(some, asleep=asleep, version=step)))
        except BaseException:
            for part in () if self._transport.streams else parts:
                part.close()
            raise
        sending.failed |= paused.failed
        marks.append(time.monotonic())
        try:
            self._send_parts(sending, parts, step)
        except Exception as error:
            failure = error
        for _ in tensors:  # gathering a sharded tensor takes every process
            pass
        if self.asleep:
            free_memory()  # what was gathered, before servers take memory for their cache
        try:
            left = self._agreed(up, sending, failure)
        except BaseException:
            sending.kept(step).close()  # what was published before stays what a restarted server gets
            raise
        marks.append(time.monotonic())
        if self._keeps:
            before, self._last_good = self._last_good, sending.kept(step)
            if before is not None:
                before.close()
        return left

    def _targets(self, up: Sequence[VLLMServer]) -> Sequence[VLLMServer]:
        """Whom this process sends to."""
        if self._own is None:
            return up
        said = [[server.address for server in up]]
        broadcast_object_list(said)
        own = self._own.servers.servers[self._own.number]
        return [own] if own.address in said[0] else []

    def _first_part(self, sending: Sending, tensors: Tensors) -> tuple[Iterator[Payload], Exception | None]:
        """Connect and gather, as much as comes before the pause; what failed is for `together` to say."""
        parts: Iterator[Payload] = iter(())
        failure: Exception | None = None
        try:
            if sending.left or self._keeps:
                self._loop.run(self._connect(sending))
                source = self._servers if self._own is None else self._own.servers
                assert source is not None, "a process without servers sends nothing"
                parts = self._transport.parts(tensors, getattr(torch, source.facts[0].dtype))
                if not self._transport.streams:
                    parts = iter(list(parts))
        except Exception as error:
            failure = error
        if not self._transport.streams:
            for _ in tensors:  # the others gather everything too
                pass
        return parts, failure

    async def _connect(self, sending: Sending) -> None:
        """The first time, and after one was started again; where each process has its own, it cannot know."""
        if self._external and None in [await routes.version_of(server) for server in sending.left]:
            self._connected = []
        if self._own is not None or set(sending.left) != set(self._connected):
            await sending.each(self._transport.connect)
            self._connected = list(sending.left)

    def _send_parts(self, sending: Sending, parts: Iterator[Payload], version: int) -> None:
        """All of them, and the checks; also when no server is left, as a copy may be kept."""
        self._loop.run(sending.start())
        for part in parts:
            try:
                self._loop.run(sending.send(part))
            finally:
                part.close()
        self._loop.run(sending.finish(version))

    def _agreed(
        self, up: Sequence[VLLMServer], sending: Sending, failure: Exception | None
    ) -> Sequence[VLLMServer]:
        """Those that hold the weights by what all processes say; the others are ended.

        Raises:
            EngineFault: none holds them, or nobody can start one again that does not.
        """
        failed = dict(sending.reasons)
        if self._own is not None:
            said = gather_object([failed])
            failed = {address: why for some in said for address, why in some.items()}
        with together():
            if failure is not None:
                raise failure
            if self._servers is None:
                return []
            return self._loop.run(without(self._servers, up, failed))

    async def _resume(self, servers: Servers, left: Sequence[VLLMServer]) -> None:
        sending = Sending(left)
        await sending.each(lambda some: routes.resume(some, asleep=self.asleep))
        await without(servers, left, sending.reasons)

    async def _put_to_sleep(self, servers: Servers) -> None:
        for server in servers.servers:
            await servers.recovered(server)
        self._wanted.clear()  # one that dies is started again only when it is wanted
        sleeping = Sending(servers.servers)
        await sleeping.each(routes.sleep)
        await without(servers, servers.servers, sleeping.reasons)
