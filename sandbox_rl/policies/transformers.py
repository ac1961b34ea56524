"""A policy served by a transformers model in this process, batching whatever waits.

For machines without a GPU and for tests. A batch starts when every living episode waits for a turn,
when it is full, or when the oldest request has waited `max_delay_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.base import UNTRAINED, PolicySession, TurnSampling, WeightVersion
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.policies.transformers_sampling import sample_batch
from sandbox_rl.types import Action

__all__ = ["TransformersPolicy"]


@dataclass(frozen=True, slots=True)
class _Request:
    prompt_ids: tuple[int, ...]
    sampling: TurnSampling
    done: asyncio.Future[Action]


class TransformersPolicy:
    """Samples turns from `model`, which may be trained between batches.

    Args:
        model: a causal language model, or a function that gives the current one (a trainer wraps
            its model only once training has started).
        end_ids: ids that end a turn.
        pad_id: any id; masked.
        max_context: longest sequence in tokens.
        max_batch: rows of one batch at most.
        max_delay_s: how long the oldest request waits for company.
        version: updates that the model has received.
        lease: of a model that is trained too; None: nobody trains it.
        compute: a context to compute in, as autocast.
    """

    def __init__(
        self,
        model: PreTrainedModel | Callable[[], PreTrainedModel],
        *,
        end_ids: frozenset[int],
        pad_id: int,
        max_context: int,
        max_batch: int = 64,
        max_delay_s: float = 0.05,
        version: WeightVersion = UNTRAINED,
        lease: ModelLease | None = None,
        compute: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._model: Callable[[], PreTrainedModel] = (
            (lambda: model) if isinstance(model, PreTrainedModel) else model
        )
        self._end_ids = end_ids
        self._pad_id = pad_id
        self._max_context = max_context
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._version = version
        self._lease = lease if lease is not None else ModelLease(always=True)
        self._leaving = False
        self._compute = compute
        self._waiting: list[_Request] = []
        self._live = 0
        self._timer: asyncio.TimerHandle | None = None
        self._worker: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens."""
        return self._max_context

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        """Count one more living episode while open."""
        self._live += 1
        try:
            yield _Session(self)
        finally:
            self._live -= 1
            self._maybe_start()  # the others may all be waiting now

    async def __aenter__(self) -> TransformersPolicy:
        self._leaving = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._leaving = True
        if self._timer is not None:
            self._timer.cancel()
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=60.0)
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    async def _act(self, prompt_ids: Sequence[int], sampling: TurnSampling, timeout: float) -> Action:
        request = _Request(tuple(prompt_ids), sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._maybe_start()
        try:
            async with asyncio.timeout(timeout):
                return await request.done
        finally:
            if request in self._waiting:
                self._waiting.remove(request)

    def _maybe_start(self, *, overdue: bool = False) -> None:
        busy = self._worker is not None and not self._worker.done()
        if busy or not self._waiting:
            return
        full = len(self._waiting) >= min(self._live, self._max_batch)
        if full or overdue:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._worker = asyncio.create_task(self._work())
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._max_delay_s, self._overdue)

    def _overdue(self) -> None:
        self._timer = None
        self._maybe_start(overdue=True)

    async def _work(self) -> None:
        # Rows of one batch share temperature and truncation; the longest waiting request decides.
        first = self._waiting[0].sampling
        key = (first.temperature, first.top_p, first.top_k)
        batch = [
            r
            for r in self._waiting
            if (r.sampling.temperature, r.sampling.top_p, r.sampling.top_k) == key and not r.done.done()
        ][: self._max_batch]
        self._waiting = [r for r in self._waiting if r not in batch]
        try:
            actions = await asyncio.get_running_loop().run_in_executor(
                self._executor, lambda: self._sample(batch)
            )
        except Exception as error:
            fault = (
                error
                if isinstance(error, EngineFault)
                else EngineFault(f"the model failed to generate: {error!r}")
            )
            for request in batch:
                if not request.done.done():
                    request.done.set_exception(fault)
        else:
            for request, action in zip(batch, actions, strict=True):
                if not request.done.done():  # its episode may have given up meanwhile
                    request.done.set_result(action)
        asyncio.get_running_loop().call_soon(self._maybe_start)

    def _sample(self, batch: Sequence[_Request]) -> list[Action]:
        """In the sampler's thread; leaves between two tokens once nobody waits or the model is wanted back.

        Raises:
            EngineFault: the latter.
        """
        with self._lease.sampling(), self._compute():
            actions = sample_batch(
                self._model(),
                [r.prompt_ids for r in batch],
                [r.sampling for r in batch],
                end_ids=self._end_ids,
                pad_id=self._pad_id,
                weight_version=self._version.value,
                wanted=lambda row: not (self._ends or batch[row].done.done()),
            )
            if self._ends:
                raise EngineFault("sampling was ended before the turn was")
        return actions

    @property
    def _ends(self) -> bool:
        return self._leaving or self._lease.over


class _Session:
    def __init__(self, policy: TransformersPolicy) -> None:
        self._policy = policy

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        return await self._policy._act(prompt_ids, sampling, timeout)
