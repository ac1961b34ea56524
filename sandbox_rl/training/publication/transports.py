"""The ways of weights into servers: shared memory, CUDA handles, a process group. None decides when.

A transport makes a payload of whole tensors, and a payload sends itself to servers that have started an
update; `weights.py` pauses, verifies and resumes around it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from sandbox_rl.errors import SetupError
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.training.publication.payload import (
    Checksums,
    card_uuid,
    checksums_of,
    cuda_handles,
    in_shared_memory,
    path_of,
)
from sandbox_rl.training.publication.routes import control_all, rpc

__all__ = ["IpcTransport", "Payload", "ShmTransport", "Tensors", "Transport", "on_our_card"]

Tensors = Iterator[tuple[str, torch.Tensor]]
"""(name in a checkpoint, whole tensor), one at a time."""


class Payload(Protocol):
    """Weights as they are sent."""

    @property
    def checksums(self) -> Checksums:
        """What servers are held against afterwards."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether it can be kept and sent again; another holds memory that the trainer needs."""
        ...

    async def send(self, servers: Sequence[VLLMServer]) -> None:
        """Bring the weights to servers that have started an update.

        Raises:
            EngineFault: a server does not do its part.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Transport(Protocol):
    """One way. Its methods raise `EngineFault` when a server does not do its part."""

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Prepare servers, once each."""
        ...

    def stage(self, tensors: Tensors, dtype: torch.dtype) -> Payload:
        """Gather the tensors as they will be sent, while requests still go on."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class ShmTransport:
    """A file in shared memory, which servers of the same host and user read."""

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Tell the servers to load files."""
        await control_all(servers, "/init_weight_transfer_engine", {"init_info": {}})

    def stage(self, tensors: Tensors, dtype: torch.dtype) -> Payload:
        """In a file; the copies on the CPU are gone when this returns."""
        staged = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors}
        return _File(in_shared_memory(staged), checksums_of(staged))

    def close(self) -> None:
        """Each payload is closed by itself."""


class _File:
    """The descriptor of an anonymous file: a server of ours that is started again gets it once more."""

    lasting = True

    def __init__(self, file: int, checksums: Checksums) -> None:
        self._file: int | None = file
        self.checksums = checksums

    async def send(self, servers: Sequence[VLLMServer]) -> None:
        assert self._file is not None, "it was closed"
        await control_all(servers, "/update_weights", {"update_info": {"path": path_of(self._file)}})

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class IpcTransport:
    """CUDA handles: the servers copy from the trainer's memory, on one card."""

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Tell the servers to open handles.

        Raises:
            SetupError: a server uses another card, where the handles mean nothing.
        """
        for server in servers:
            if not all(await on_our_card(server)):
                raise SetupError(
                    f"policy.transfer: 'ipc', but the server {server.address} does not use the trainer's "
                    "card alone; set policy.transfer=shm (the same host) or nccl"
                )
        await control_all(servers, "/init_weight_transfer_engine", {"init_info": {}})

    def stage(self, tensors: Tensors, dtype: torch.dtype) -> Payload:
        """On the card; tensors that are right already are not copied."""
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]  # the servers have closed the last ones
        staged = {name: tensor.detach().to("cuda", dtype).contiguous() for name, tensor in tensors}
        torch.cuda.synchronize()
        return _OnCard(staged)

    def close(self) -> None:
        """Give back what the servers have closed."""
        if torch.cuda.is_available():
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


class _OnCard:
    """Tensors that must live until the servers have copied them. To keep them would take half of the card."""

    lasting = False

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self.checksums = checksums_of(tensors)

    async def send(self, servers: Sequence[VLLMServer]) -> None:
        await control_all(servers, "/update_weights", {"update_info": cuda_handles(self._tensors)})

    def close(self) -> None:
        self._tensors = {}


async def on_our_card(server: VLLMServer) -> list[bool]:
    """For each worker of a server, whether it uses the card of this process."""
    ours = card_uuid()
    return [ours is not None and card == ours for card in await rpc(server, "sandbox_rl_card")]
