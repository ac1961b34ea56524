"""A policy served by a transformers model in this process, batching whatever waits.

For machines without a GPU and for tests. A batch starts when every living episode waits for a turn,
when it is full, or when the oldest request has waited `max_delay_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.base import UNTRAINED, PolicySession, TurnSampling, WeightVersion
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.policies.transformers_sampling import sample_batch
from sandbox_rl.types import Action


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    prompt_ids: tuple[int, ...]
    sampling: TurnSampling
    done: asyncio.Future[Action]


@dataclass(eq=False)
class TransformersPolicy:
    """Samples turns from `model`, which may be trained between batches.

    Args:
        model: a causal language model.
        end_ids: ids that end a turn.
        pad_id: any id; masked.
        max_context: longest sequence in tokens.
        max_batch: rows of one batch at most.
        max_delay_s: how long the oldest request waits for company.
        version: updates that the model has received.
        lease: of a model that is trained too; by default nobody trains it.
        compute: a context to compute in, as autocast.
    """

    model: PreTrainedModel
    _: KW_ONLY
    end_ids: frozenset[int]
    pad_id: int
    max_context: int
    max_batch: int = 64
    max_delay_s: float = 0.05
    version: WeightVersion = UNTRAINED
    lease: ModelLease = field(default_factory=partial(ModelLease, always=True))
    compute: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        self._leaving = False
        self._waiting: list[_Request] = []
        self._live = 0
        self._timer: asyncio.TimerHandle | None = None
        self._worker: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        """Count one more living episode while open."""
        self._live += 1
        try:
            yield self
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

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        """See `PolicySession.act`; a session is nothing but one more episode that may wait."""
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
        if overdue:
            self._timer = None
        busy = self._worker is not None and not self._worker.done()
        if busy or not self._waiting:
            return
        full = len(self._waiting) >= min(self._live, self.max_batch)
        if full or overdue:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._worker = asyncio.create_task(self._work())
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.max_delay_s, partial(self._maybe_start, overdue=True))

    async def _work(self) -> None:
        waiting = [r for r in self._waiting if not r.done.done()]
        if not waiting:  # their episodes have given up since this was started
            return
        # Rows of one batch share temperature and truncation; the longest waiting request decides.
        kinds = [(r.sampling.temperature, r.sampling.top_p, r.sampling.top_k) for r in waiting]
        alike = [r for r, kind in zip(waiting, kinds, strict=True) if kind == kinds[0]]
        batch = alike[: self.max_batch]
        self._waiting = [r for r in waiting if r not in batch]
        try:
            actions = await asyncio.get_running_loop().run_in_executor(
                self._executor, lambda: self._sample(batch)
            )
        except Exception as error:
            known = isinstance(error, EngineFault)
            fault = error if known else EngineFault(f"the model failed to generate: {error!r}")
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
        with self.lease.sampling(), self.compute():
            actions = sample_batch(
                self.model,
                [r.prompt_ids for r in batch],
                [r.sampling for r in batch],
                end_ids=self.end_ids,
                pad_id=self.pad_id,
                weight_version=self.version.value,
                wanted=lambda row: not (self._ends or batch[row].done.done()),
            )
            if self._ends:
                raise EngineFault("sampling was ended before the turn was")
        return actions

    @property
    def _ends(self) -> bool:
        return self._leaving or self.lease.over
