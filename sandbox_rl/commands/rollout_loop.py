"""The other end of `RolloutProcess`: groups of episodes, one after another, until told to stop.

It talks to sandboxes and servers, parses and scores. It sees no GPU and dies with the trainer.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.commands.parts import build_chat, build_engine
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.episode import SamplingSettings
from sandbox_rl.errors import InfraFault
from sandbox_rl.journal import Journal
from sandbox_rl.metrics import group_metrics, rollout_metrics
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm import VLLMPolicy
from sandbox_rl.policies.vllm_api import Address
from sandbox_rl.policies.vllm_external import ExternalServers
from sandbox_rl.rollout import EpisodeRequest, RolloutEngine
from sandbox_rl.rollout.tail_batches import of_group
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.curriculum import teaches
from sandbox_rl.training.models import generation_ends, load_tokenizer
from sandbox_rl.training.samples import Advantage, to_samples

__all__ = ["Channels", "RolloutJob", "roll_out"]

PR_SET_PDEATHSIG = 1
FAILED_GROUPS = 8
"""Groups in a row of which every episode failed on our side, after which it is no accident."""
HEARTBEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class RolloutJob:
    """What the process needs; it crosses the border between processes.

    Args:
        model: directory or Hub id whose tokenizer talks.
        addresses: of the servers.
        done: groups that were trained before.
    """

    recipe: Recipe
    base_dir: Path
    model: str
    addresses: tuple[Address, ...]
    journal: Path
    group_size: int
    advantage: Advantage
    sampling: SamplingSettings
    done: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Channels:
    """What connects the two ends: queues, values and an event of multiprocessing.

    Args:
        samples: for the trainer; full when it is behind.
        metrics: dicts of a group's metrics.
        skipped: numbers of groups that never become samples.
        failure: why the process ended, if it did not have to.
        version: of the weights that turns are sampled with.
        beat: when the loop last moved, on the monotonic clock.
        stop: set when it should end.
    """

    samples: Any
    metrics: Any
    skipped: Any
    failure: Any
    version: Any
    beat: Any
    stop: Any


def roll_out(job: RolloutJob, channels: Channels) -> None:
    """The whole life of the process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        asyncio.run(_roll_out(job, channels))
    except BaseException as error:
        channels.failure.put(f"{type(error).__name__}: {error}")
        raise


async def _roll_out(job: RolloutJob, channels: Channels) -> None:
    recipe = job.recipe
    engine = _engine(job, recipe, lambda: int(channels.version.value))
    tasks = list(load_tasks(recipe.data, split="train", base_dir=job.base_dir))
    at_once = max(1, recipe.rollout.concurrency // job.group_size)
    failed_in_a_row = 0

    async def one(group: int) -> None:
        nonlocal failed_in_a_row
        task = of_group(tasks, group, seed=recipe.seed)
        requests = [
            EpisodeRequest(
                id=f"train-{group:06d}-{sample:04d}",
                task=task,
                seed=derive_seed(recipe.seed, task.id, group, sample),
            )
            for sample in range(job.group_size)
        ]
        try:
            rollouts = await engine.run(requests)
        except InfraFault:
            failed_in_a_row += 1
            if failed_in_a_row >= FAILED_GROUPS:
                raise
            channels.skipped.put(group)
            return
        failed_in_a_row = 0
        journal.write_all(rollouts, phase="train", step=int(channels.version.value))
        channels.metrics.put(rollout_metrics(rollouts) | group_metrics([rollouts]) | engine.occupancy.take())
        if recipe.curriculum.refill_rounds and not teaches(rollouts):
            channels.skipped.put(group)  # another group takes its place by itself
            return
        made = to_samples(rollouts, group_id=group, kind=job.advantage)
        if not made:
            channels.skipped.put(group)
        for sample in made:
            sample.enqueued_at = time.time()
            while not channels.stop.is_set():
                try:
                    channels.samples.put_nowait(sample)
                    break
                except queue.Full:
                    await asyncio.sleep(0.05)  # the trainer is behind: that holds this group's place

    with Journal(job.journal) as journal:
        async with engine:
            live: set[asyncio.Task[None]] = set()
            group = 0
            try:
                while not channels.stop.is_set():
                    channels.beat.value = time.monotonic()
                    while len(live) < at_once:
                        if group not in job.done:
                            live.add(asyncio.create_task(one(group)))
                        group += 1
                    ended, live = await asyncio.wait(
                        live, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in ended:
                        task.result()
            finally:
                for task in live:
                    task.cancel()
                await asyncio.gather(*live, return_exceptions=True)


def _engine(job: RolloutJob, recipe: Recipe, weight_version: Callable[[], int]) -> RolloutEngine:
    settings = recipe.policy
    assert isinstance(settings, VLLMSettings)
    model = recipe.model.model_copy(update={"path": job.model})
    chat = build_chat(recipe, load_tokenizer(model), generation_ends(model))
    source = ExternalServers(
        job.addresses, needed_context=1, tokenizer=None, startup_timeout_s=settings.startup_timeout_s
    )
    policy = VLLMPolicy(source, settings, end_ids=chat.ends.ids, weight_version=weight_version)
    return build_engine(recipe, base_dir=job.base_dir, policy=policy, chat=chat, sampling=job.sampling)
