"""A policy in vLLM servers: a managed one that is started here, or those that a recipe names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from sandbox_rl.errors import SetupError
from sandbox_rl.http_client import Address
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.check import TokenizerProbe
from sandbox_rl.policies.vllm.external import ExternalServers
from sandbox_rl.policies.vllm.launch import ENGINES
from sandbox_rl.policies.vllm.policy import ServerSource, VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.policies.vllm.supervisor import SupervisedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.weights import PublishedWeights

__all__ = ["ServedModel", "ServedPolicy", "serve", "starting_log", "transfer_of"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What servers are started with and held against.

    Args:
        path: directory or Hub id.
        dtype: of the weights there, `auto` for the server's own choice; `policy.arguments` goes before.
        end_ids: ids that end a turn.
        longest_prompt: in tokens.
        longest: tokens of the longest sequence.
    """

    path: str
    dtype: str
    tokenizer: TokenizerProbe
    end_ids: frozenset[int]
    longest_prompt: int
    longest: int


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A policy in servers, and the weights that they hold.

    Args:
        addresses: of the servers, for other processes.
        managed: the server that this process started, if it did.
    """

    policy: VLLMPolicy
    weights: PublishedWeights
    addresses: tuple[Address, ...]
    managed: ManagedServer | None
    loop: LoopThread

    def keep_log(self, path: Path) -> None:
        """Move the log of a server of ours to where the run lies."""
        if self.managed is not None:
            self.managed.move_log(path)

    def stop(self) -> None:
        """End a server of ours that was started, entered or not."""
        if self.managed is not None:
            self.loop.run(self.managed.stop())
        self.weights.close()


def serve(
    settings: VLLMSettings,
    model: ServedModel,
    *,
    loop: LoopThread,
    log: Path,
    say: Callable[[str], None],
) -> ServedPolicy:
    """Start a server, or look for the given ones; entering the policy waits for them.

    The first process has the server of a run; the others use it over the same socket.

    Raises:
        SetupError: no interpreter with vLLM, no card for the chosen transfer.
    """
    state = PartialState()
    main = state.is_main_process
    transfer = transfer_of(settings, processes=state.num_processes)
    managed: ManagedServer | None = None
    addresses = tuple(map(Address.parse, settings.base_urls))
    if settings.engine == "managed":
        if main:
            managed = _started(settings, model, transfer=transfer, log=log, loop=loop, say=say)
            addresses = (managed.address,)
        if state.num_processes > 1:
            shared = [addresses]  # one object: the lists must be equally long on all ranks
            broadcast_object_list(shared)
            (addresses,) = shared
    source: ServerSource
    if managed is not None:
        weights = PublishedWeights(managed, loop, transfer=transfer, sleeps=settings.sleep)
        source = SupervisedServer(managed, weights, restarts=settings.restarts)
    else:
        source = others = ExternalServers(
            addresses,
            needed_context=model.longest_prompt + 1,
            tokenizer=model.tokenizer if main else None,
            engine=ENGINES[transfer] if main else None,
            startup_timeout_s=settings.startup_timeout_s,
        )
        weights = PublishedWeights(others if main else None, loop, transfer=transfer, sleeps=settings.sleep)
    policy = VLLMPolicy(source, settings, end_ids=model.end_ids, version=weights.version)
    return ServedPolicy(policy, weights, addresses, managed, loop)


def starting_log(directory: Path, name: str) -> Path:
    """Where a server's log lies until there is a run to keep it."""
    return directory / f"{name}-vllm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def _started(
    settings: VLLMSettings,
    model: ServedModel,
    *,
    transfer: str,
    log: Path,
    loop: LoopThread,
    say: Callable[[str], None],
) -> ManagedServer:
    arguments = {"max-model-len": model.longest, "dtype": model.dtype} | dict(settings.arguments)
    server = ManagedServer(
        settings.model_copy(update={"arguments": arguments}),
        model=model.path,
        log=log,
        transfer=transfer,
        gpu=torch.cuda.is_available(),
        needed_context=model.longest_prompt + 1,
        tokenizer=model.tokenizer,
        say=say,
    )
    loop.run(server.start())
    return server


def transfer_of(settings: VLLMSettings, *, processes: int) -> str:
    """How weights get in on this machine: `shm`, `ipc`, `nccl` or `gloo`.

    CUDA handles open only on the card that they come from.

    Raises:
        SetupError: the chosen way needs a card and there is none.
    """
    if settings.transfer in ("ipc", "nccl") and not torch.cuda.is_available():
        other = "shm" if settings.transfer == "ipc" else "shm for servers of this host or gloo for others"
        raise SetupError(
            f"policy.transfer: {settings.transfer!r}, but there is no CUDA card here; set {other}"
        )
    if settings.transfer != "auto":
        return settings.transfer
    elsewhere = settings.engine == "external" or "CUDA_VISIBLE_DEVICES" in settings.environment
    return "ipc" if torch.cuda.is_available() and processes == 1 and not elsewhere else "shm"
