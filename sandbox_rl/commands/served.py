"""A run's policy: in this process, or in vLLM servers that the trainer's weights are published to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.run import RunSettings
from sandbox_rl.display import Display
from sandbox_rl.errors import SetupError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.api import Address
from sandbox_rl.policies.vllm.external import ExternalServers
from sandbox_rl.policies.vllm.launch import ENGINES
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.publication.sync import WeightSync
from sandbox_rl.training.publication.transfer import WeightPublisher

__all__ = ["ServedPolicy", "serve", "transfer_of"]


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A policy in servers, and what keeps their weights up to date.

    Args:
        publisher: on the main process.
        addresses: of the servers, for other processes.
        on_version: called with each new weight version before anything is sampled with it.
        keep_log: move the log of a server of ours to where the run lies.
        stop: end a server of ours that was started, entered or not.
    """

    policy: VLLMPolicy
    sync: WeightSync
    publisher: WeightPublisher | None
    addresses: tuple[Address, ...]
    on_version: list[Callable[[int], None]]
    keep_log: Callable[[Path], None]
    stop: Callable[[], None]


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


def serve(
    recipe: RunSettings,
    *,
    model: str,
    dtype: str,
    tokenizer: Any,
    chat: ChatFormat,
    longest_prompt: int,
    context: int,
    loop: LoopThread,
    state: PartialState,
    display: Display,
) -> ServedPolicy:
    """Start a server, or look for the given ones; entering the policy waits for them.

    The first process has the server of a run; the others use it over the same socket.

    Args:
        model: what the server loads.
        dtype: in which type, `auto` for its own choice; `policy.arguments` goes before.
        longest_prompt: in tokens.
        context: of the model, in tokens.

    Raises:
        SetupError: no interpreter with vLLM, no card for the chosen transfer.
    """
    settings = recipe.policy
    assert isinstance(settings, VLLMSettings)
    transfer = transfer_of(settings, processes=state.num_processes)
    log = Path(recipe.output_dir) / f"{recipe.name}-vllm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    source: ManagedServer | ExternalServers
    addresses = [Address.parse(url) for url in settings.base_urls]
    managed = settings.engine == "managed"
    publisher = None
    listeners: list[Callable[[int], None]] = []

    def tell(version: int) -> None:
        for listener in listeners:
            listener(version)

    if state.is_main_process:
        publisher = WeightPublisher(loop, lambda: source, transfer=transfer, on_version=tell)
    if managed and publisher is not None:
        longest = min(context, longest_prompt + recipe.episode.max_tokens)
        arguments = {"max-model-len": longest, "dtype": dtype} | dict(settings.arguments)
        source = ManagedServer(
            settings.model_copy(update={"arguments": arguments}),
            model=model,
            log=log,
            transfer=transfer,
            gpu=torch.cuda.is_available(),
            needed_context=longest_prompt + 1,
            tokenizer=tokenizer,
            republish=publisher.republish,
            say=display.say,
        )
        loop.run(source.start())
        addresses = [source.address]
    if managed and state.num_processes > 1:
        shared: list[Any] = [addresses]  # one object: the lists must be equally long on all ranks
        broadcast_object_list(shared)
        addresses = shared[0]
    if not (managed and state.is_main_process):
        source = ExternalServers(
            addresses,
            needed_context=longest_prompt + 1,
            tokenizer=tokenizer if state.is_main_process else None,
            engine=ENGINES[transfer] if state.is_main_process else None,
            startup_timeout_s=settings.startup_timeout_s,
        )
    sync = WeightSync(publisher, state, sleep=settings.sleep)
    listeners.append(sync.served)
    policy = VLLMPolicy(source, settings, end_ids=chat.ends.ids, weight_version=lambda: sync.version)

    def keep_log(path: Path) -> None:
        if isinstance(source, ManagedServer):
            source.move_log(path)

    def stop() -> None:
        if isinstance(source, ManagedServer):
            loop.run(source.stop())
        if publisher is not None:
            publisher.destroy()

    return ServedPolicy(policy, sync, publisher, tuple(addresses), listeners, keep_log, stop)
