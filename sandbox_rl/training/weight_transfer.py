"""Getting the trainer's weights into vLLM servers, behind TRL's `WeightTransferProtocol`.

    pause (requests freeze) → start → update → finish → mend → verify → resume

A transfer that fails half-way raises and leaves the servers paused: a mixture of old and new weights is
never sampled from. Afterwards the servers' own checksums of some tensors are compared with ours.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import torch

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.vllm_api import Refused, Unreachable, VLLMServer
from sandbox_rl.training.loop import LoopThread

__all__ = ["Served", "WeightPublisher"]

VERIFIED_TENSORS = 8
VERIFIED_ROWS = 256
"""Of each verified tensor at most; norms are one-dimensional and shorter or about as long."""


_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


Checksums = Mapping[str, tuple[list[int], int]]
"""Tensor name → shape of its checked rows, and their CRC-32."""


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
            update, kept = _cuda_handles(iterator, dtype)
        else:
            kept = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in iterator}
            file = _in_memory(kept)
            update = {"path": _path(file)}
        expected = _checksums(kept)
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
        await self._update([server], {"path": _path(self._file)}, self._expected)
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


def _in_memory(tensors: Mapping[str, torch.Tensor]) -> int:
    """Descriptor of an anonymous file with these tensors: it is gone once both sides have closed it."""
    file = os.memfd_create("sandbox-rl-weights", os.MFD_CLOEXEC)
    with os.fdopen(file, "wb", closefd=False) as writer:
        _write_safetensors(tensors, writer)
    return file


def _path(file: int) -> str:
    """How the server, a process of the same user, finds it."""
    return f"/proc/{os.getpid()}/fd/{file}"


def _write_safetensors(tensors: Mapping[str, torch.Tensor], writer: BinaryIO) -> None:
    """The safetensors format, tensor by tensor: the library writes beside a path or into one more copy.

    Eight bytes with the header's length, the header as JSON, then the tensors' bytes
    (https://huggingface.co/docs/safetensors).
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    writer.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        writer.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[list[int], int]]:
    """Of the embedding and of norms spread over the depth: what servers keep unfused, under its own name."""
    candidates = [n for n in tensors if "norm" in n or n.endswith("embed_tokens.weight")]
    chosen = candidates[:: max(1, len(candidates) // VERIFIED_TENSORS)]
    found: dict[str, tuple[list[int], int]] = {}
    for name in chosen:
        part = tensors[name][:VERIFIED_ROWS].to("cpu").contiguous()
        found[name] = (list(part.shape), zlib.crc32(part.view(torch.uint8).numpy().data))
    return found


def _cuda_handles(
    iterator: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The update that vLLM's `ipc` engine takes, and the tensors that must live until it has copied them.

    One handle per tensor, keyed by the card's UUID, pickled and base64-encoded (vLLM 0.26 to 0.32,
    `IPCWeightTransferUpdateInfo`).
    """
    reduce_tensor: Any = torch.multiprocessing.reductions.reduce_tensor

    card = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    kept: dict[str, torch.Tensor] = {}
    handles = []
    for name, tensor in iterator:
        kept[name] = tensor.detach().to(dtype).contiguous()
        handles.append({card: reduce_tensor(kept[name])[1]})
    torch.cuda.synchronize()
    return {
        "names": list(kept),
        "dtype_names": [str(t.dtype).removeprefix("torch.") for t in kept.values()],
        "shapes": [list(t.shape) for t in kept.values()],
        "ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode(),
    }, kept
