"""Rollouts in a process of their own, for training that does not wait for them.

The trainer's process computes; this one talks to sandboxes and servers, parses and scores. It sees no GPU
and dies with the trainer. Fulfils TRL's `RolloutWorkerProtocol`.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import queue
import random
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.commands.parts import build_chat, build_engine
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.episode import SamplingSettings
from sandbox_rl.errors import EngineFault, InfraFault
from sandbox_rl.journal import Journal
from sandbox_rl.metrics import group_metrics, rollout_metrics
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm import VLLMPolicy
from sandbox_rl.policies.vllm_api import Address
from sandbox_rl.policies.vllm_server import ExternalServers
from sandbox_rl.rollout import EpisodeRequest, RolloutEngine
from sandbox_rl.seeds import derive_seed
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.curriculum import teaches
from sandbox_rl.training.models import load_tokenizer
from sandbox_rl.training.samples import Advantage, to_samples
from sandbox_rl.types import Task

__all__ = ["RolloutJob", "RolloutProcess", "task_of_group"]

PR_SET_PDEATHSIG = 1
FAILED_GROUPS = 8
"""Groups in a row of which every episode failed on our side, after which it is no accident."""
STOP_TIMEOUT_S = 60.0
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


class RolloutProcess:
    """The trainer's end: queues, the version that is live, and whether the other end still works."""

    def __init__(self, job: RolloutJob, *, queue_size: int) -> None:
        self._job = job
        self._context = multiprocessing.get_context("spawn")
        self.rollout_buffer: Any = self._context.Queue(maxsize=queue_size)
        self.metrics_queue: Any = self._context.Queue()
        self._skipped_queue: Any = self._context.Queue()
        self._failure: Any = self._context.Queue()
        self._version: Any = self._context.Value("q", 0)
        self._beat: Any = self._context.Value("d", 0.0)
        self._stop: Any = self._context.Event()
        self._process: Any = None
        self._skipped: set[int] = set()

    def start(self) -> None:
        """Begin to roll out. Called once, when the servers hold the first weights."""
        self._beat.value = time.monotonic()
        self._process = self._context.Process(
            target=_main,
            args=(
                self._job,
                self.rollout_buffer,
                self.metrics_queue,
                self._skipped_queue,
                self._failure,
                self._version,
                self._beat,
                self._stop,
            ),
            name="rollouts",
            daemon=False,  # it has children itself: scorers
        )
        self._process.start()

    def stop(self) -> None:
        """End it; its sandboxes go with it."""
        process, self._process = self._process, None
        if process is None:
            return
        self._stop.set()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while process.is_alive() and time.monotonic() < deadline:
            _drain(self.rollout_buffer)  # a full queue would keep its feeder thread, and so the process
            _drain(self.metrics_queue)
            process.join(0.1)
        if process.is_alive():
            process.kill()
            process.join(STOP_TIMEOUT_S)

    def update_model_version(self, model_version: int) -> None:
        """Which weights turns are sampled with from now on."""
        self._version.value = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Asked by TRL while it waits.

        Raises:
            EngineFault: the process is gone, said why, or its loop hangs.
        """
        if self._process is None or not self._process.is_alive():
            code = None if self._process is None else self._process.exitcode
            try:
                why = self._failure.get(timeout=1.0)
            except queue.Empty:
                why = f"exit code {code}"
            raise EngineFault(f"the rollout process ended: {why}; go on with --resume")
        silent = time.monotonic() - self._beat.value
        if silent > stale_after_s:
            raise EngineFault(f"the rollout process has not moved for {silent:.0f} s; go on with --resume")

    def skipped(self) -> set[int]:
        """Groups that never reached the trainer: nothing to learn, or failed."""
        self._skipped |= set(_drain(self._skipped_queue))
        return self._skipped


def task_of_group(tasks: Sequence[Task], group: int, *, seed: int) -> Task:
    """The tasks in passes, each pass in an order of its own."""
    number, place = divmod(group, len(tasks))
    order = list(range(len(tasks)))
    random.Random(derive_seed(seed, "pass", number)).shuffle(order)
    return tasks[order[place]]


def _drain(source: Any) -> Iterable[Any]:
    found = []
    while True:
        try:
            found.append(source.get_nowait())
        except queue.Empty:
            return found


def _main(
    job: RolloutJob,
    samples: Any,
    metrics: Any,
    skipped: Any,
    failure: Any,
    version: Any,
    beat: Any,
    stop: Any,
) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        asyncio.run(_roll_out(job, samples, metrics, skipped, version, beat, stop))
    except BaseException as error:
        failure.put(f"{type(error).__name__}: {error}")
        raise


async def _roll_out(
    job: RolloutJob, samples: Any, metrics: Any, skipped: Any, version: Any, beat: Any, stop: Any
) -> None:
    recipe = job.recipe
    engine = _engine(job, recipe, lambda: int(version.value))
    tasks = list(load_tasks(recipe.data, split="train", base_dir=job.base_dir))
    at_once = max(1, recipe.rollout.concurrency // job.group_size)
    failed_in_a_row = 0

    async def one(group: int) -> None:
        nonlocal failed_in_a_row
        task = task_of_group(tasks, group, seed=recipe.seed)
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
            skipped.put(group)
            return
        failed_in_a_row = 0
        journal.write_all(rollouts, phase="train", step=int(version.value))
        metrics.put(rollout_metrics(rollouts) | group_metrics([rollouts]))
        if recipe.curriculum.refill_rounds and not teaches(rollouts):
            skipped.put(group)  # another group takes its place by itself
            return
        made = to_samples(rollouts, group_id=group, kind=job.advantage)
        if not made:
            skipped.put(group)
        for sample in made:
            sample.enqueued_at = time.time()
            while not stop.is_set():
                try:
                    samples.put_nowait(sample)
                    break
                except queue.Full:
                    await asyncio.sleep(0.05)  # the trainer is behind: that holds this group's place

    with Journal(job.journal) as journal:
        async with engine:
            live: set[asyncio.Task[None]] = set()
            group = 0
            try:
                while not stop.is_set():
                    beat.value = time.monotonic()
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
    tokenizer = load_tokenizer(recipe.model.model_copy(update={"path": job.model}))
    chat = build_chat(recipe, tokenizer)
    source = ExternalServers(
        job.addresses, needed_context=1, tokenizer=None, startup_timeout_s=settings.startup_timeout_s
    )
    policy = VLLMPolicy(source, settings, end_ids=chat.end_ids, weight_version=weight_version)
    return build_engine(recipe, base_dir=job.base_dir, policy=policy, chat=chat, sampling=job.sampling)
