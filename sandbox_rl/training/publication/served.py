"""A policy in vLLM servers: managed ones that are started here, or those that a recipe names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sandbox_rl.http_client import Address
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.check import TokenizerProbe
from sandbox_rl.policies.vllm.fleet import ManagedServers, RestoredServers, SupervisedServers, log_of
from sandbox_rl.policies.vllm.launch import ENGINES
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.server import ManagedServer
from sandbox_rl.policies.vllm.source import ExternalServers, Servers
from sandbox_rl.training.agreement import of_first, together
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.placement import Place, Placement
from sandbox_rl.training.placement_by_hand import unplanned_transfer
from sandbox_rl.training.publication.sending import OwnServer
from sandbox_rl.training.publication.weights import PublishedWeights


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
        managed: the servers that this process started, if it did.
    """

    policy: VLLMPolicy
    weights: PublishedWeights
    addresses: tuple[Address, ...]
    managed: ManagedServers | None
    loop: LoopThread

    def keep_log(self, path: Path) -> None:
        """Move the logs of servers of ours to where the run lies: `path`, or numbered beside it."""
        if self.managed is not None:
            self.managed.move_logs(path)

    def stop(self) -> None:
        """End servers of ours that were started, entered or not."""
        if self.managed is not None:
            self.loop.run(self.managed.stop())
        self.weights.close()


def serve(
    settings: VLLMSettings,
    model: ServedModel,
    placement: Placement | None,
    *,
    loop: LoopThread,
    log: Path,
    say: Callable[[str], None],
) -> ServedPolicy:
    """Start servers, or look for the given ones; entering the policy waits for them.

    The first process has all servers of a run, however many there are: one owner sees each death once and
    decides alone who is started again. The others use them over the same sockets, and send weights to the one
    on their own card where that is the way (`ipc`).

    Args:
        placement: of managed servers; None for external ones.

    Raises:
        SetupError, ConfigError: no interpreter with vLLM, no card for the chosen transfer.
    """
    state = PartialState()
    main = state.is_main_process
    cards = torch.cuda.is_available()
    transfer = unplanned_transfer(settings, cards=cards) if placement is None else placement.transfer
    managed: ManagedServers | None = None
    addresses = tuple(map(Address.parse, settings.base_urls))
    if placement is not None:
        with together():  # the others wait for the addresses
            if main:
                managed = _started(settings, model, placement, log=log, loop=loop, say=say)
        addresses = of_first(lambda: () if managed is None else managed.addresses)
    others = ExternalServers(
        addresses,
        needed_context=model.longest_prompt + 1,
        tokenizer=model.tokenizer if main else None,
        engine=ENGINES[transfer] if main else None,
        startup_timeout_s=settings.startup_timeout_s,
    )
    publishing: Servers = others if managed is None else managed
    weights = PublishedWeights(
        publishing if main else None,
        loop,
        transfer=transfer,
        sleeps=placement is not None and placement.sleep,
        keeps=placement is None or (managed is not None and settings.restarts > 0),
        external=placement is None,
        own=OwnServer(publishing, state.local_process_index)
        if placement is not None and transfer == "ipc" and state.num_processes > 1
        else None,
    )
    source: AbstractAsyncContextManager[Servers] = others
    if managed is not None:
        source = SupervisedServers(managed, weights, restarts=settings.restarts)
    elif main:
        source = RestoredServers(others, weights)
    policy = VLLMPolicy(
        source, settings, end_ids=model.end_ids, version=weights.version, first=state.local_process_index
    )
    return ServedPolicy(policy, weights, addresses, managed, loop)


def starting_log(directory: Path, name: str) -> Path:
    """Where a server's log lies until there is a run to keep it."""
    return directory / f"{name}-vllm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def _started(
    settings: VLLMSettings,
    model: ServedModel,
    placement: Placement,
    *,
    log: Path,
    loop: LoopThread,
    say: Callable[[str], None],
) -> ManagedServers:
    gpu = torch.cuda.is_available()
    places = placement.servers
    fleet = ManagedServers(
        [
            ManagedServer(
                _placed(settings, model, place, sleep=placement.sleep, gpu=gpu),
                model=model.path,
                log=log_of(log, number, len(places)),
                transfer=placement.transfer,
                gpu=gpu,
                servers=len(places),
                needed_context=model.longest_prompt + 1,
                tokenizer=model.tokenizer,
                say=say,
            )
            for number, place in enumerate(places)
        ]
    )
    loop.run(fleet.start())
    return fleet


def _placed(
    settings: VLLMSettings, model: ServedModel, place: Place, *, sleep: bool, gpu: bool
) -> VLLMSettings:
    """Settings of the server at this place; what the recipe says goes before."""
    arguments: dict[str, Any] = {"max-model-len": model.longest, "dtype": model.dtype}
    environment = {}
    if gpu and place.cards:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(card.id for card in place.cards)
        if place.share is not None:
            arguments["gpu-memory-utilization"] = place.share
    return settings.model_copy(
        update={
            "arguments": arguments | settings.plain_arguments,
            "environment": environment | settings.environment,
            "sleep": sleep,
        }
    )
