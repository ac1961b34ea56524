"""Getting the trainer's weights into vLLM servers, behind TRL's `WeightTransferProtocol`.

    pause (requests freeze) → start → update → finish → mend → verify → resume

A transfer that fails half-way raises and leaves the servers paused: a mixture of old and new weights is
never sampled from. Afterwards the servers' own checksums of some tensors are compared with ours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.vllm_api import Refused, Unreachable, VLLMServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.weight_payload import (
    Checksums,
    checksums_of,
    cuda_handles,
    in_shared_memory,
    path_of,
)

__all__ = ["Served", "WeightPublisher"]


class Served(Protocol):
    """The servers to publish to; a `ServerSource` that has been entered."""

    @property
    def servers(self) -> Sequence[VLLMServer]:
        """All of them."""
        ...


class WeightPublisher:
    """Publishes weights to every server and knows which version they serve.

    Args:
        loop: where the servers' connections live; the methods are called from outside of it.
        transfer: `shm` (a file in shared memory; CPUs, one host) or `ipc` (CUDA handles; one host).
        dtype: of the servers' weights, as torch names it.
        on_version: told the new version before any request can be sampled with it.

    Raises:
        EngineFault: from every method, when a server does not do what it should.
    """

    def __init__(
        self,
        loop: LoopThread,
        served: Served,
        *,
        transfer: str,
        dtype: Callable[[], str],
        on_version: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._served = served
        self._transfer = transfer
        self._dtype = dtype
        self._on_version = on_version
        self._file: int | None = None
        self._expected: Checksums = {}
        self._mixed = False
        self._paused_at = 0.0
        self.version = 0
        """Of the weights that the servers hold; 0 are those they loaded by themselves."""
        self.last_pause_s = 0.0
        """Seconds from the last pause to the resume after it, as episodes saw them."""

    # --- TRL's WeightTransferProtocol ---------------------------------------------------------------

    def init_weight_transfer(self) -> None:
        """Prepare every server, once."""
        self._run(self._init(self._served.servers))

    def pause(self) -> None:
        """Freeze the requests in flight; they go on after `resume`."""
        self._paused_at = time.monotonic()
        self._run(self._each(self._served.servers, "/pause", query={"mode": "keep"}))

    def send_weights(
        self, iterator: Iterator[tuple[str, torch.Tensor]], *, version: int | None = None
    ) -> None:
        """Bring `(checkpoint name, tensor)` pairs to every server and verify them there.

        Args:
            version: of these weights; one more than the last otherwise.
        """
        dtype = getattr(torch, self._dtype())
        self._mixed = True
        file: int | None = None
        if self._transfer == "ipc":
            update, kept = cuda_handles(iterator, dtype)
        else:
            kept = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in iterator}
            file = in_shared_memory(kept)
            update = {"path": path_of(file)}
        expected = checksums_of(kept)
        try:
            self._run(self._update(self._served.servers, update, expected))
        except BaseException:
            if file is not None:
                os.close(file)
            raise  # what was published before stays what a restarted server gets
        del kept  # CUDA handles are views of it: not before the servers have copied
        self.destroy()
        self._file, self._expected = file, expected
        self.version = self.version + 1 if version is None else version
        self._on_version(self.version)
        self._mixed = False

    def resume(self) -> None:
        """Let requests go on."""
        if self._mixed:
            raise EngineFault("the servers stay paused: the last weight transfer did not complete")
        self._run(self._each(self._served.servers, "/resume"))
        self.last_pause_s = time.monotonic() - self._paused_at

    def destroy(self) -> None:
        """Free the shared memory."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    # --- ours ----------------------------------------------------------------------------------------

    def publish(self, iterator: Iterator[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Pause, send and resume."""
        self.pause()
        self.send_weights(iterator, version=version)
        self.resume()

    async def republish(self, server: VLLMServer) -> None:
        """Give a server that was restarted the last published weights. Called in the loop."""
        if not self._expected:
            return  # nothing was published yet: what it loads by itself is right
        if self._file is None:
            raise EngineFault(
                "a restarted server cannot get the newest weights back with transfer 'ipc', which keeps no "
                "copy; go on from the last checkpoint with --resume, or set policy.transfer=shm"
            )
        await self._init([server])
        await self._update([server], {"path": path_of(self._file)}, self._expected)
        self._mixed = False  # it replaced one that a broken transfer may have left behind

    async def _init(self, servers: Sequence[VLLMServer]) -> None:
        await self._each(servers, "/init_weight_transfer_engine", {"init_info": {}})

    async def _update(
        self, servers: Sequence[VLLMServer], update: Mapping[str, Any], expected: Checksums
    ) -> None:
        await self._each(servers, "/start_weight_update")
        await self._each(servers, "/update_weights", {"update_info": update})
        await self._each(servers, "/finish_weight_update")
        for server in servers:
            await self._rpc(server, "sandbox_rl_after_update")
            await self._verify(server, expected)
        # Requests salt their prefixes by version, so that stale blocks are unreachable already; this only
        # frees them, and fails harmlessly while frozen requests hold some.
        await self._each(servers, "/reset_prefix_cache")

    async def _verify(self, server: VLLMServer, checksums: Checksums) -> None:
        rows = json.dumps({name: shape[0] for name, (shape, _) in checksums.items()})
        compared = 0
        for worker in await self._rpc(server, "sandbox_rl_checksums", rows):
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

    async def _rpc(self, server: VLLMServer, method: str, *args: str) -> list[Any]:
        try:
            return await server.rpc(method, *args)
        except (Refused, Unreachable) as error:
            raise EngineFault(f"{server.address}: {error}") from error

    async def _each(
        self,
        servers: Sequence[VLLMServer],
        route: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> None:
        for server in servers:
            try:
                await server.call("POST", route, body, query=query)
            except (Refused, Unreachable) as error:
                raise EngineFault(f"weight transfer to {server.address}: {error}") from error

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run(work)
