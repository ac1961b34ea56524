"""What one of two processes does in tests/smoke/test_own_servers.py: each sends to a server of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sandbox_rl.errors import EngineFault
from sandbox_rl.http_client import Address
from sandbox_rl.policies.vllm.fake import FakeVLLM
from sandbox_rl.policies.vllm.source import ExternalServers
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.payload import checksums_of
from sandbox_rl.training.publication.routes import verify
from sandbox_rl.training.publication.sending import OwnServer
from sandbox_rl.training.publication.transports import ShmTransport
from sandbox_rl.training.publication.weights import PublishedWeights


class PartByPart(ShmTransport):
    """Gathers and sends part by part while requests are frozen, as CUDA handles are sent, through files."""

    streams = True

    def parts(self, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Iterator[Any]:
        for name, tensor in tensors:
            yield from super().parts(iter([(name, tensor)]), dtype)


class Gathered(torch.nn.Module):
    """Each weight takes an exchange of both processes, as a shard does; notes whether requests go on."""

    def __init__(self, value: float, fake: FakeVLLM) -> None:
        super().__init__()
        self.fake = fake
        self.asked_while_open: list[str] = []
        self.tensors = {f"layers.{n}.norm.weight": torch.full((4,), value + n) for n in range(3)}

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[Any]:
        for name, tensor in self.tensors.items():
            whole = tensor / 2
            torch.distributed.all_reduce(whole)
            if not self.fake.paused:
                self.asked_while_open.append(name)
            yield name, whole


class Replaceable(ExternalServers):
    """Somebody starts servers again."""

    replaced: list[str]

    async def replace(self, server: Any, why: str) -> bool:
        self.replaced = [*getattr(self, "replaced", []), why]
        return True


def main(directory: Path) -> None:
    """Publish three times: to both, with one that fails, and with both failing."""
    state = PartialState(cpu=True)
    rank, other = state.process_index, 1 - state.process_index
    fake = FakeVLLM()
    sockets = [directory / str(number) for number in range(2)]
    with LoopThread() as loop:
        serving = fake.serving(sockets[rank])
        loop.run(serving.__aenter__())
        state.wait_for_everyone()
        source = Replaceable(
            [Address.parse(f"unix://{socket}") for socket in sockets],
            needed_context=1,
            tokenizer=None,
            startup_timeout_s=120,
        )
        main_one = state.is_main_process
        weights = PublishedWeights(
            source if main_one else None,
            loop,
            transfer=PartByPart(),
            keeps=True,
            own=OwnServer(source, rank),
        )
        said = []
        with loop.entered(source):
            model = Gathered(1.0, fake)
            weights.publish(model, 1)
            loop.run(verify(source.servers[other], checksums_of(model.tensors)))
            said.append(f"open {model.asked_while_open} version {weights.version.value}")

            if rank == 1:
                fake.control_faults["/update_weights"] = 1
            weights.publish(Gathered(2.0, fake), 2)  # the other one goes on with it
            said.append(f"replaced {len(getattr(source, 'replaced', []))} version {weights.version.value}")
            state.wait_for_everyone()
            if main_one:
                loop.run(weights.restore(source.servers[1]))
                loop.run(verify(source.servers[1], checksums_of(Gathered(2.0, fake).tensors)))

            fake.control_faults["/finish_weight_update"] = 1
            try:
                weights.publish(Gathered(3.0, fake), 3)
            except EngineFault as error:
                said.append(f"agreed {error.agreed} version {weights.version.value}")
            state.wait_for_everyone()
        weights.close()
        loop.run(serving.__aexit__(None, None, None))
    (directory / f"own-{rank}.txt").write_text("\n".join(said))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
