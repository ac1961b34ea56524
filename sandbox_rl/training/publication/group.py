"""Weights over a process group of the trainer and all workers: NCCL between cards, gloo between CPUs.

For servers on other cards or other hosts. The worker's end is `policies/vllm/plugin/sandbox_rl_group.py`.
vLLM has an NCCL engine too; its trainer's end needs vLLM in the trainer's environment, knows no time-out,
and cannot run on a CPU, where these lines are tested.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch

from sandbox_rl.errors import EngineFault, SetupError
from sandbox_rl.policies.vllm.api import VLLMServer
from sandbox_rl.training.publication.routes import control
from sandbox_rl.training.publication.transports import (
    PART_BYTES,
    IpcTransport,
    Payload,
    ShmTransport,
    Tensors,
    Transport,
    on_our_card,
    staged_parts,
)

c10d: Any = torch.distributed  # its stub leaves out stores and groups, which its documentation has

MEETING_TIMEOUT_S = 110.0
"""Of every operation of the group; shorter than a control route, so that its own error comes first."""
ABANDON_S = 5.0
"""Seconds that the other ends get to fail once one has."""


class GroupTransport(Transport):
    """Broadcasts from rank 0.

    Args:
        backend: `nccl` or `gloo`.
    """

    collective = True
    streams = True

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._store: Any = None
        self._group: Any = None
        self._meetings = itertools.count()

    async def connect(self, servers: Sequence[VLLMServer]) -> None:
        """Meet all workers of all servers.

        Raises:
            SetupError: with `nccl`, a server shares the trainer's card.
            EngineFault: a server did not come.
        """
        sizes = [int((await control(s, "/get_world_size", method="GET"))["world_size"]) for s in servers]
        if self._backend == "nccl":
            await _refuse_shared_cards(servers)
        if self._store is None:
            timeout = datetime.timedelta(seconds=MEETING_TIMEOUT_S)
            self._store = c10d.TCPStore("0.0.0.0", 0, None, True, timeout, wait_for_workers=False)
        store = self._store
        meeting = f"weights-{next(self._meetings)}"
        first_ranks = itertools.accumulate(sizes[:-1], initial=1)
        calls = []
        for server, first_rank in zip(servers, first_ranks, strict=True):
            init = {
                "host": address_towards(server),
                "port": store.port,
                "group": meeting,
                "backend": self._backend,
                "first_rank": first_rank,
                "size": 1 + sum(sizes),
                "timeout_s": MEETING_TIMEOUT_S,
            }
            calls.append(control(server, "/init_weight_transfer_engine", {"init_info": init}))
        own = address_towards(servers[0])
        await self._together(calls, lambda: self._join(store, meeting, 1 + sum(sizes), own))

    def parts(self, tensors: Tensors, dtype: torch.dtype) -> Iterator[Payload]:
        """Where the group's backend sends from."""
        device = "cuda" if self._backend == "nccl" else "cpu"
        for part in staged_parts(tensors, device, dtype, PART_BYTES):
            if device == "cuda":
                torch.cuda.synchronize()  # the broadcast runs in another thread, on its own stream
            yield Payload(part, self.broadcast)
            del part  # or it would be there beside the next one

    async def broadcast(self, servers: Sequence[VLLMServer], tensors: Mapping[str, torch.Tensor]) -> None:
        """Broadcast while all servers receive; one that is started again is in no group any more.

        Raises:
            EngineFault: one end failed; the group is gone then.
        """
        if self._group is None:
            raise EngineFault("weight transfer: the process group is gone; go on with --resume")
        update = {
            "names": list(tensors),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
        }
        calls = [control(s, "/update_weights", {"update_info": update}) for s in servers]
        await self._together(calls, lambda: self._broadcast(list(tensors.values())))

    def close(self) -> None:
        """Leave the group."""
        self._group = self._store = None

    def _join(self, store: Any, meeting: str, size: int, own: str) -> None:
        timeout = datetime.timedelta(seconds=MEETING_TIMEOUT_S)
        store = c10d.PrefixStore(meeting, store)
        if self._backend == "nccl":
            kind = c10d.ProcessGroupNCCL
            options = kind.Options()
        else:
            kind = c10d.ProcessGroupGloo
            options = kind._Options()
            options._devices = [kind.create_device(hostname=own)]
        options._timeout = timeout
        self._group = kind(store, 0, size, options)

    def _broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_cuda:
                torch.cuda.set_device(tensor.device)  # the current one is each thread's own
            self._group.broadcast(tensor, 0).wait()
        if self._backend == "nccl":
            torch.cuda.synchronize()

    async def _together(self, calls: Sequence[Coroutine[Any, Any, object]], ours: Callable[[], None]) -> None:
        """Both ends at once. When one fails the other is not waited for."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        tasks.append(asyncio.ensure_future(asyncio.to_thread(ours)))
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            if self._backend == "nccl" and self._group is not None:
                self._group.abort()
            await asyncio.wait(pending, timeout=ABANDON_S)
        failed = [t.exception() for t in tasks if t.done() and t.exception() is not None]
        if not failed:
            return
        self._group = None
        for task in pending:
            task.cancel()
        for error in failed:  # a server's own words say more than a closed connection
            if isinstance(error, EngineFault):
                raise error
        raise EngineFault(f"weight transfer by {self._backend}: {failed[0]}") from failed[0]


async def _refuse_shared_cards(servers: Sequence[VLLMServer]) -> None:
    for server in servers:
        if any(await on_our_card(server)):
            raise SetupError(
                f"policy.transfer: 'nccl', but the server {server.address} uses the trainer's own card, "
                "which NCCL refuses; set policy.transfer=ipc, or give the server a card of its own "
                "(policy.environment.CUDA_VISIBLE_DEVICES)"
            )


def address_towards(server: VLLMServer) -> str:
    """The address of this host by which `server` reaches it; nothing is sent."""
    if server.address.socket is not None:
        return "127.0.0.1"
    url = urlsplit(server.address.url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((url.hostname, url.port or 80))
        return str(probe.getsockname()[0])


def transport_of(transfer: str) -> Transport:
    """By the name that `policy.transfer` gives it."""
    if transfer == "shm":
        return ShmTransport()
    return IpcTransport() if transfer == "ipc" else GroupTransport(transfer)
