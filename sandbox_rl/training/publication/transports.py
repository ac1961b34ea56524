"""The ways of weights into servers: shared memory, CUDA handles, a process group. None decides when.

A transport makes a payload of whole tensors, and a payload sends itself to servers that have started an
update; `weights.py` pauses, verifies and resumes around it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import torch

from sandbox_rl.errors import SetupError
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.training.host_memory import trim_heap
from sandbox_rl.training.publication.payload import card_uuid, checksums_of, cuda_handles, write_safetensors
from sandbox_rl.training.publication.routes import control_all, rpc

Tensors = Iterator[tuple[str, torch.Tensor]]
"""(name in a checkpoint, whole tensor), one at a time."""

PART_BYTES = 512 << 20
"""Of weights beside the model at once, on a card or staged in the host; a larger tensor goes by itself."""


class HostCopy:
    """Weights in an anonymous file in memory, which servers of this host and user can read.

    Args:
        tensors: on any device; not needed afterwards.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        # Gone once both sides have closed it.
        self._file = os.fdopen(os.memfd_create("sandbox-rl-weights", os.MFD_CLOEXEC), "wb")
        write_safetensors(tensors, self._file)
        self._file.flush()

    @property
    def path(self) -> str:
        """How a server, a process of the same user, finds it."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def close(self) -> None:
        """Free it."""
        self._file.close()


class Payload:
    """Weights, or some of them, as they are sent.

    Args:
        tensors: kept until `close`; servers copy from them.
        send: brings them to servers that have started an update; an `EngineFault` where one does not do its
            part.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        send: Callable[[Sequence[VLLMServer], Mapping[str, torch.Tensor]], Awaitable[None]],
    ) -> None:
        self._tensors = tensors
        self._send = send
        self.checksums = checksums_of(tensors)
        """What servers are held against afterwards."""

    async def send(self, servers: Sequence[VLLMServer]) -> None:
        """Bring the weights to servers."""
        await self._send(servers, self._tensors)

    def copy(self) -> HostCopy:
        """For servers that are started again; closed by who asks for it."""
        return HostCopy(self._tensors)

    def close(self) -> None:
        """Free what it holds."""
        self._tensors = {}


class Transport(ABC):
    """One way. Its methods raise `EngineFault` when a server does not do its part."""

    collective = False
    """Whether all servers receive at once, so that one that fails stops the others."""
    streams = False
    """Whether parts are gathered one after the other while requests are frozen, to save memory."""

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Prepare these servers, which are all that are sent to; again after one was started again."""
        await control_all(servers, "/init_weight_transfer_engine", {"init_info": {}})

    @abstractmethod
    def parts(self, tensors: Tensors, dtype: torch.dtype) -> Iterator[Payload]:
        """The tensors as they will be sent; without `streams` everything is gathered by the first one."""

    def close(self) -> None:  # noqa: B027 (each payload is closed by itself)
        """Free everything that is left."""


class ShmTransport(Transport):
    """A file in shared memory, which servers of the same host and user read."""

    def parts(self, tensors: Tensors, dtype: torch.dtype) -> Iterator[Payload]:
        """A file of each part; the copies beside it are gone when this yields."""
        for part in staged_parts(tensors, "cpu", dtype, PART_BYTES):
            payload = _InHostMemory(part)
            part.clear()
            trim_heap()  # servers are about to load the weights beside those that they have
            yield payload


class _InHostMemory(Payload):
    """Only the copy is kept: nobody needs the tensors any more."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(tensors, self._send_file)
        self._copy, self._taken = HostCopy(tensors), False
        super().close()

    async def _send_file(self, servers: Sequence[VLLMServer], _: object) -> None:
        await control_all(servers, "/update_weights", {"update_info": {"path": self._copy.path}})

    def copy(self) -> HostCopy:
        self._taken = True
        return self._copy

    def close(self) -> None:
        if not self._taken:
            self._copy.close()


class IpcTransport(Transport):
    """CUDA handles: a server copies from the memory of the trainer's process on its card, part by part.

    Weights are gathered and sent in parts of at most `PART_BYTES`, so that a sharded model is never whole on
    a card beside the server's own.
    """

    streams = True

    def __init__(self) -> None:
        # Of the thread that makes this: which card is current is each thread's own.
        self._card = torch.cuda.current_device() if torch.cuda.is_available() else None

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Tell the servers to open handles.

        Raises:
            SetupError: a server uses another card, where the handles mean nothing.
        """
        for server in servers:
            if not all(await on_our_card(server, self._card)):
                raise SetupError(
                    f"policy.transfer: 'ipc', but the server {server.address} does not use the trainer's "
                    "card alone; set policy.transfer=shm (the same host) or nccl"
                )
        await super().connect(servers)

    def parts(self, tensors: Tensors, dtype: torch.dtype) -> Iterator[Payload]:
        """On the card; tensors that are right already are not copied."""
        for part in staged_parts(tensors, "cuda", dtype, PART_BYTES):
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]  # the servers have closed the last ones
            torch.cuda.synchronize()
            yield Payload(part, _send_handles)
            del part  # or it would be there beside the next one

    def close(self) -> None:
        """Give back what the servers have closed."""
        if torch.cuda.is_available():
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


async def _send_handles(servers: Sequence[VLLMServer], tensors: Mapping[str, torch.Tensor]) -> None:
    await control_all(servers, "/update_weights", {"update_info": cuda_handles(tensors)})


def staged_parts(
    tensors: Tensors, device: str, dtype: torch.dtype, limit: int
) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors as they will be sent, in parts of at most `limit` bytes, or of one tensor.

    What is so already is not copied. Nothing but a part and one gathered tensor is there at once, if the
    caller has let go of the part before. Cut alike on all ranks.
    """
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        ready = tensor.detach().to(device, dtype).contiguous()
        del tensor
        more = ready.numel() * ready.element_size()
        if part and size + more > limit:
            yield part
            part, size = {}, 0
        part[name], size = ready, size + more
        del ready
    if part:
        yield part


async def on_our_card(server: VLLMServer, card: int | None = None) -> list[bool]:
    """For each worker of a server, whether it uses the same card, by default that of this thread."""
    ours = card_uuid(card)
    return [ours is not None and card == ours for card in await rpc(server, "sandbox_rl_card")]
