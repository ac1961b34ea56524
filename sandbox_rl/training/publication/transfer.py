"""Getting the trainer's weights into vLLM servers, behind TRL's `WeightTransferProtocol`.

    stage → pause (requests freeze) → start → update → finish → repair → verify → resume

and for servers that sleep while the trainer updates

    stage → wake the weights → start → update → finish → repair → verify → wake the cache, which resumes

A transfer that fails half-way raises and leaves the servers paused: a mixture of old and new weights is
never sampled from. Afterwards the servers' own checksums of some tensors are compared with ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.vllm.api import Refused, Unreachable, VLLMServer
from sandbox_rl.policies.vllm.check import ServerFacts
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.group import GroupTransport
from sandbox_rl.training.publication.payload import Checksums, checksums_of
from sandbox_rl.training.publication.transports import (
    IpcTransport,
    ShmTransport,
    Tensors,
    Transport,
    control,
    control_all,
)

__all__ = ["Served", "Staged", "WeightPublisher", "transport_of"]


class Served(Protocol):
    """The servers to publish to; a `ServerSource` that has been entered."""

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """All of them."""
        ...

    @property
    def facts(self) -> Sequence[ServerFacts]:
        """What each says about itself."""
        ...

    def rest(self) -> None:
        """They sleep: one that dies is started again only after `wake`."""
        ...

    async def wake(self) -> None:
        """Wait until they are there."""
        ...


@dataclass(frozen=True, slots=True)
class Staged:
    """Whole tensors by checkpoint name, as they will be sent, and what servers are held against."""

    tensors: Tensors
    checksums: Checksums


def transport_of(transfer: str) -> Transport:
    """By the name that `policy.transfer` gives it."""
    if transfer == "shm":
        return ShmTransport()
    return IpcTransport() if transfer == "ipc" else GroupTransport(transfer)


class WeightPublisher:
    """Publishes weights to every server and knows which version they serve.

    Args:
        loop: where the servers' connections live; the methods are called from outside of it.
        served: gives the servers, once they have been entered.
        transfer: `shm`, `ipc`, `nccl` or `gloo`.
        on_version: told the new version before any request can be sampled with it.

    Raises:
        EngineFault: from every method, when a server does not do what it should.
    """

    def __init__(
        self,
        loop: LoopThread,
        served: Callable[[], Served],
        *,
        transfer: str,
        on_version: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._served = served
        self._transport = transport_of(transfer)
        self._on_version = on_version
        self._connected = False
        self._expected: Checksums = {}
        self._mixed = False
        self._paused_at = 0.0
        self.asleep = False
        """Whether the servers were put to sleep and have not been woken."""
        self.version = 0
        """Of the weights that the servers hold; 0 are those they loaded by themselves."""
        self.last_pause_s = 0.0
        """Seconds from the last pause to the resume after it, as episodes saw them."""

    # --- TRL's WeightTransferProtocol ---------------------------------------------------------------

    def init_weight_transfer(self) -> None:
        """Prepare every server, once."""
        self._run(self._transport.connect(self._servers))
        self._connected = True

    def pause(self) -> None:
        """Freeze the requests in flight; they go on after `resume`. Servers that sleep get their weights'
        memory back instead."""
        self._paused_at = time.monotonic()
        self._run(self._pause())

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Stage and send; who can stages before the pause."""
        self.send(self.stage(iterator))

    def resume(self) -> None:
        """Let requests go on."""
        if self._mixed:
            raise EngineFault("the servers stay paused: the last weight transfer did not complete")
        self._run(self._resume())
        self.last_pause_s = time.monotonic() - self._paused_at

    def destroy(self) -> None:
        """Free what the transfer holds."""
        self._transport.close()

    # --- ours ----------------------------------------------------------------------------------------

    def stage(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> Staged:
        """Gather `(checkpoint name, tensor)` pairs and check them while requests go on."""
        tensors = self._transport.stage(iterator, getattr(torch, self._served().facts[0].dtype))
        return Staged(tensors, checksums_of(tensors))

    def send(self, staged: Staged, *, version: int | None = None) -> None:
        """Bring what was staged last to every server and verify it there.

        Args:
            version: of these weights; one more than the last otherwise.
        """
        self._mixed = True

        async def work() -> None:
            await control_all(self._servers, "/start_weight_update")
            await self._transport.send(self._servers, staged.tensors)
            await self._finish(self._servers, staged.checksums)

        self._run(work())
        self._transport.keep()
        self._expected = staged.checksums
        self.version = self.version + 1 if version is None else version
        self._on_version(self.version)
        self._mixed = False

    def publish(self, iterator: Iterator[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Stage, pause, send and resume; prepares the servers the first time."""
        if not self._connected:
            self.init_weight_transfer()
        staged = self.stage(iterator)
        self.pause()
        self.send(staged, version=version)
        self.resume()

    def sleep(self) -> None:
        """Have the servers give their memory back until the next `publish`; nothing may be in flight."""
        if self.asleep:
            return
        self.asleep = True
        self._served().rest()
        # Level 2 forgets the weights: whoever wakes the servers publishes.
        self._run(control_all(self._servers, "/sleep", query={"level": "2"}))

    async def republish(self, server: VLLMServer) -> None:
        """Give a server that was restarted the last published weights. Called in the loop."""
        if not self._connected:
            return
        if self.asleep or not self._expected:
            await self._transport.connect([server])  # the weights are about to come, or are right
            return
        await self._transport.resend(server)
        await self._finish([server], self._expected)
        self._mixed = False  # it replaced one that a broken transfer may have left behind

    @property
    def _servers(self) -> Sequence[VLLMServer]:
        return self._served().servers

    async def _pause(self) -> None:
        if self.asleep:
            await self._served().wake()
        for server in self._servers:
            if self.asleep and await _sleeps(server):
                await control(server, "/wake_up", query={"tags": "weights"})
            else:  # a sleeper that died was started anew and is awake
                await control(server, "/pause", query={"mode": "keep"})

    async def _resume(self) -> None:
        for server in self._servers:
            if self.asleep and await _sleeps(server):
                await control(server, "/wake_up", query={"tags": "kv_cache"})
        await control_all(self._servers, "/resume")
        self.asleep = False

    async def _finish(self, servers: Sequence[VLLMServer], expected: Checksums) -> None:
        await control_all(servers, "/finish_weight_update")
        for server in servers:
            await _rpc(server, "sandbox_rl_after_update")
            await self._verify(server, expected)
        # Requests salt their prefixes by version, so that stale blocks are unreachable already; this only
        # frees them, and fails harmlessly while frozen requests hold some.
        await control_all(servers, "/reset_prefix_cache")

    async def _verify(self, server: VLLMServer, checksums: Checksums) -> None:
        rows = json.dumps({name: shape[0] for name, (shape, _) in checksums.items()})
        compared = 0
        for worker in await _rpc(server, "sandbox_rl_checksums", rows):
            for name, (shape, crc) in worker.items():
                expected_shape, expected = checksums[name]
                if list(shape) != expected_shape:
                    continue  # a shard of it
                compared += 1
                if crc != expected:
                    raise EngineFault(
                        f"{server.address}: after the weight transfer {name!r} differs from the trainer's "
                        f"(checksum {crc:08x}, expected {expected:08x})"
                    )
        if not compared:
            raise EngineFault(
                f"{server.address}: none of {sorted(checksums)} could be verified after the transfer"
            )

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run(work)


async def _sleeps(server: VLLMServer) -> bool:
    return bool((await control(server, "/is_sleeping", method="GET"))["is_sleeping"])


async def _rpc(server: VLLMServer, method: str, *args: str) -> list[Any]:
    try:
        return await server.rpc(method, *args)
    except (Refused, Unreachable) as error:
        raise EngineFault(f"{server.address}: {error}") from error
