"""The ways of weights into servers: shared memory, CUDA handles, a process group. None decides when.

A transport is given whole tensors and servers that are ready to load them; `weight_transfer` pauses,
verifies and resumes around it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.policies.vllm.api import Refused, Unreachable, VLLMServer
from sandbox_rl.training.publication.payload import card_uuid, cuda_handles, in_shared_memory, path_of

__all__ = [
    "NO_COPY",
    "IpcTransport",
    "ShmTransport",
    "Tensors",
    "Transport",
    "control",
    "control_all",
    "on_our_card",
]

Tensors = Mapping[str, torch.Tensor]


class Transport(Protocol):
    """One way. Every method raises `EngineFault` when a server does not do its part."""

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Prepare the servers, once."""
        ...

    def stage(self, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Tensors:
        """The tensors as they will be sent; alive until the servers have them. Requests still go on."""
        ...

    async def send(self, servers: Sequence[VLLMServer], staged: Tensors) -> None:
        """Bring them to servers that have started an update."""
        ...

    def keep(self) -> None:
        """What was sent last is right everywhere: from now on `resend` gives it."""
        ...

    async def resend(self, server: VLLMServer) -> None:
        """Bring what was kept to a server that was restarted and has started an update."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class ShmTransport:
    """A file in shared memory, which servers of the same host and user read. Keeps the last one."""

    def __init__(self) -> None:
        self._staged: int | None = None
        self._sent: int | None = None
        self._file: int | None = None

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Tell the servers to load files."""
        await control_all(servers, "/init_weight_transfer_engine", {"init_info": {}})

    def stage(self, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Tensors:
        """On the CPU, and in the file.

        Until `keep` the host holds them up to three times: these tensors (the model's own memory where
        device and dtype are right already), this file, and the file that restarted servers get.
        """
        staged = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors}
        self._close("_staged")
        self._staged = in_shared_memory(staged)
        return staged

    async def send(self, servers: Sequence[VLLMServer], staged: Tensors) -> None:
        """Have the file loaded."""
        assert self._staged is not None, "staged before"
        try:
            await self._load(servers, self._staged)
        except BaseException:
            self._close("_staged")  # what was published before stays what a restarted server gets
            raise
        self._close("_sent")
        self._sent, self._staged = self._staged, None

    def keep(self) -> None:
        """Close the file before."""
        self._close("_file")
        self._file, self._sent = self._sent, None

    async def resend(self, server: VLLMServer) -> None:
        """Have the kept file loaded."""
        assert self._file is not None, "something was kept"
        await self.connect([server])
        await control(server, "/start_weight_update")
        await self._load([server], self._file)

    def close(self) -> None:
        """Free the memory."""
        for which in ("_staged", "_sent", "_file"):
            self._close(which)

    def _close(self, which: str) -> None:
        file: int | None = getattr(self, which)
        setattr(self, which, None)
        if file is not None:
            os.close(file)

    @staticmethod
    async def _load(servers: Sequence[VLLMServer], file: int) -> None:
        await control_all(servers, "/update_weights", {"update_info": {"path": path_of(file)}})


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

    def stage(self, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Tensors:
        """On the card; tensors that are right already are not copied."""
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]  # the servers have closed the last ones
        staged = {name: tensor.detach().to("cuda", dtype).contiguous() for name, tensor in tensors}
        torch.cuda.synchronize()
        return staged

    async def send(self, servers: Sequence[VLLMServer], staged: Tensors) -> None:
        """Have the handles opened and copied from."""
        await control_all(servers, "/update_weights", {"update_info": cuda_handles(staged)})

    def keep(self) -> None:
        """Nothing: a copy of all weights would take half of the card."""

    async def resend(self, server: VLLMServer) -> None:
        """Cannot."""
        raise EngineFault(NO_COPY.format("ipc"))

    def close(self) -> None:
        """Give back what the servers have closed."""
        if torch.cuda.is_available():
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


NO_COPY = (
    "a restarted server cannot get the newest weights back with transfer '{}', which keeps no copy; go on "
    "from the last checkpoint with --resume, or set policy.transfer=shm"
)


async def control(
    server: VLLMServer,
    route: str,
    body: Mapping[str, Any] | None = None,
    *,
    method: str = "POST",
    query: Mapping[str, str] | None = None,
) -> Any:
    """The answer of a control route.

    Raises:
        EngineFault: it refused, or there was none.
    """
    try:
        return await server.call(method, route, body, query=query)
    except (Refused, Unreachable) as error:
        raise EngineFault(f"weight transfer to {server.address}: {error}") from error


async def control_all(
    servers: Sequence[VLLMServer],
    route: str,
    body: Mapping[str, Any] | None = None,
    *,
    query: Mapping[str, str] | None = None,
) -> None:
    """The same of every server at once; all have answered or failed when this returns."""
    calls = [control(server, route, body, query=query) for server in servers]
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def on_our_card(server: VLLMServer) -> list[bool]:
    """For each worker of a server, whether it uses the card of this process."""
    try:
        cards = await server.rpc("sandbox_rl_card")
    except (Refused, Unreachable) as error:
        raise EngineFault(f"weight transfer to {server.address}: {error}") from error
    ours = card_uuid()
    return [ours is not None and card == ours for card in cards]
