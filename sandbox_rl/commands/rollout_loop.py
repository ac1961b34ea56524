"""The other end of `RolloutProcess`: groups of episodes, those that the trainer admits, until told to stop.

It talks to sandboxes and servers, parses and scores. It sees no GPU and dies with the trainer.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.audit.faults import FaultWatch
from sandbox_rl.commands.parts import build_backend, build_chat, build_engine
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import InfraFault
from sandbox_rl.journal import Journal
from sandbox_rl.metrics import group_metrics, rollout_metrics
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.api import Address
from sandbox_rl.policies.vllm.external import ExternalServers
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.rollout import EpisodeRequest, RolloutEngine
from sandbox_rl.rollout.order import of_group
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.curriculum import teaches
from sandbox_rl.training.models import generation_ends, load_tokenizer
from sandbox_rl.training.samples import Advantage, FinishedGroup, LeftOut, finished_group, sampled_tokens
from sandbox_rl.types import Rollout, Task

__all__ = ["Channels", "RolloutJob", "groups_at_once", "requests_of", "roll_out"]

PR_SET_PDEATHSIG = 1
FAILED_GROUPS = 8
"""Groups in a row of which every episode failed on our side, after which it is no accident."""
HEARTBEAT_S = 1.0
POLL_S = 0.05
"""Between two looks for admitted groups, where there is room for one."""


@dataclass(frozen=True, slots=True)
class RolloutJob:
    """What the process needs; it crosses the border between processes.

    Args:
        model: directory or Hub id whose tokenizer talks.
        addresses: of the servers.
        attempt: how often this run was resumed; part of the episodes' ids, since an episode that was lost
            with a process is sampled again.
    """

    recipe: Recipe
    base_dir: Path
    model: str
    addresses: tuple[Address, ...]
    journal: Path
    group_size: int
    advantage: Advantage
    sampling: Sampling
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Channels:
    """What connects the two ends: queues, values and an event of multiprocessing.

    Args:
        admitted: lists of the numbers of groups that may start, from the trainer.
        finished: a `FinishedGroup` for each of them; bounded by what is admitted.
        metrics: dicts of a group's metrics.
        failure: if the process ended and did not have to: whether by a fault and no defect, and why.
        version: of the weights that turns are sampled with.
        beat: when the loop last moved, on the monotonic clock.
        stop: set when it should end.
    """

    admitted: Any
    finished: Any
    metrics: Any
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
    except InfraFault as error:
        channels.failure.put((True, str(error)))
    except BaseException as error:
        channels.failure.put((False, f"{type(error).__name__}: {error}"))
        raise


async def _roll_out(job: RolloutJob, channels: Channels) -> None:
    recipe = job.recipe
    engine = _engine(job, recipe, lambda: int(channels.version.value))
    tasks = list(load_tasks(recipe.data, split="train", base_dir=job.base_dir))
    at_once = groups_at_once(recipe.rollout.concurrency, job.group_size)
    failed_in_a_row = 0
    faults = _FaultsInOrder(FaultWatch(recipe.reward.max_fault_share))

    async def one(number: int) -> None:
        nonlocal failed_in_a_row
        requests = requests_of(
            number, tasks, seed=recipe.seed, group_size=job.group_size, attempt=job.attempt
        )
        try:
            rollouts = await engine.run(requests)
        except InfraFault as fault:
            failed_in_a_row += 1
            if failed_in_a_row >= FAILED_GROUPS:
                raise
            faults.ended(number, [str(fault)] * job.group_size)
            channels.finished.put(_without_samples(number, job.group_size, LeftOut.NOT_JUDGED))
            return
        failed_in_a_row = 0
        step = int(channels.version.value)
        await asyncio.to_thread(journal.write_all, rollouts, phase="train", step=step)
        faults.ended(number, rollouts)
        channels.metrics.put(rollout_metrics(rollouts) | group_metrics([rollouts]) | engine.occupancy.take())
        if recipe.curriculum.refill_rounds and not teaches(rollouts):
            # Another group takes its place by itself.
            tokens = sampled_tokens(rollouts, range(job.group_size))
            channels.finished.put(_without_samples(number, job.group_size, LeftOut.EQUAL_REWARDS, tokens))
            return
        channels.finished.put(finished_group(rollouts, number=number, kind=job.advantage))

    with Journal(job.journal) as journal:
        async with engine:
            live: set[asyncio.Task[None]] = set()
            admitted: deque[int] = deque()
            try:
                while not channels.stop.is_set():
                    channels.beat.value = time.monotonic()
                    admitted.extend(_admitted(channels.admitted))
                    while admitted and len(live) < at_once:
                        faults.started(admitted[0])
                        live.add(asyncio.create_task(one(admitted.popleft())))
                    if not live:
                        await asyncio.sleep(POLL_S)
                        continue
                    ended, live = await asyncio.wait(
                        live,
                        timeout=POLL_S if len(live) < at_once else HEARTBEAT_S,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for error in [task.exception() for task in ended]:  # all are looked at, one is told
                        if error is not None:
                            raise error
            finally:
                for task in live:
                    task.cancel()
                await asyncio.gather(*live, return_exceptions=True)


class _FaultsInOrder:
    """Adds groups in the order in which they started: faults may end sooner than honest work."""

    def __init__(self, watch: FaultWatch) -> None:
        self._watch = watch
        self._order: deque[int] = deque()
        self._ended: dict[int, Sequence[Rollout | str]] = {}

    def started(self, number: int) -> None:
        self._order.append(number)

    def ended(self, number: int, episodes: Sequence[Rollout | str]) -> None:
        """Take note of a group: its rollouts, or why each of them failed.

        Raises:
            InfraFault: too many could not be judged.
        """
        self._ended[number] = episodes
        while self._order and self._order[0] in self._ended:
            for episode in self._ended.pop(self._order.popleft()):
                self._watch.add(episode)
        if cause := self._watch.cause():
            raise InfraFault(cause)


def groups_at_once(concurrency: int, group_size: int) -> int:
    """Groups that run side by side, at least one."""
    return max(1, concurrency // group_size)


def requests_of(
    number: int, tasks: Sequence[Task], *, seed: int, group_size: int, attempt: int = 0
) -> list[EpisodeRequest]:
    """The episodes of a group: task and seeds are functions of its number and the run's seed alone.

    The ids say also in which attempt of the run they were sampled.
    """
    task = of_group(tasks, number, seed=seed)
    suffix = f"-r{attempt}" if attempt else ""
    return [
        EpisodeRequest(
            id=f"train-{number:06d}-{sample:04d}{suffix}",
            task=task,
            seed=derive_seed(seed, task.id, number, sample),
        )
        for sample in range(group_size)
    ]


def _without_samples(
    number: int, group_size: int, why: LeftOut, tokens: Mapping[int, int] | None = None
) -> FinishedGroup:
    return FinishedGroup(number, (), dict.fromkeys(range(group_size), why), tokens or {})


def _admitted(source: Any) -> list[int]:
    """All numbers that have come and were not taken yet."""
    found: list[int] = []
    while True:
        try:
            found += source.get_nowait()
        except queue.Empty:
            return found


def _engine(job: RolloutJob, recipe: Recipe, weight_version: Callable[[], int]) -> RolloutEngine:
    settings = recipe.policy
    assert isinstance(settings, VLLMSettings)
    model = recipe.model.model_copy(update={"path": job.model})
    chat = build_chat(recipe, load_tokenizer(model), generation_ends(model))
    source = ExternalServers(
        job.addresses, needed_context=1, tokenizer=None, startup_timeout_s=settings.startup_timeout_s
    )
    policy = VLLMPolicy(source, settings, end_ids=chat.ends.ids, weight_version=weight_version)
    return build_engine(
        recipe,
        base_dir=job.base_dir,
        agent=TokenAgent(policy, chat),
        sampling=job.sampling,
        backend=build_backend(recipe),
    )
