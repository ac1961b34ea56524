"""A policy served by a transformers model in this process, batching whatever waits.

For machines without a GPU and for tests. A batch starts when every living episode waits for a turn,
when it is full, or when the oldest request has waited `max_delay_s`. The sampling loop is our own
because two things must be exact: the log-prob of each sampled id comes from the very logits that it
was drawn from, and a turn's randomness comes from its own seed, whatever shares its batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from sandbox_rl.errors import EngineFault
from sandbox_rl.policies.base import PolicySession, Sampling
from sandbox_rl.types import Action

__all__ = ["TransformersPolicy", "sample_batch"]


@dataclass(frozen=True, slots=True)
class _Request:
    prompt_ids: tuple[int, ...]
    sampling: Sampling
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
        weight_version: gives the number of updates that the model has received.
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
        weight_version: Callable[[], int] = lambda: 0,
    ) -> None:
        self._model: Callable[[], PreTrainedModel] = (
            (lambda: model) if isinstance(model, PreTrainedModel) else model
        )
        self._end_ids = end_ids
        self._pad_id = pad_id
        self._max_context = max_context
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._weight_version = weight_version
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
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=60.0)
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    async def _act(self, prompt_ids: Sequence[int], sampling: Sampling, timeout: float) -> Action:
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
                self._executor,
                lambda: sample_batch(
                    self._model(),
                    [r.prompt_ids for r in batch],
                    [r.sampling for r in batch],
                    end_ids=self._end_ids,
                    pad_id=self._pad_id,
                    weight_version=self._weight_version(),
                ),
            )
        except Exception as error:
            for request in batch:
                if not request.done.done():
                    request.done.set_exception(EngineFault(f"the model failed to generate: {error!r}"))
        else:
            for request, action in zip(batch, actions, strict=True):
                if not request.done.done():  # its episode may have given up meanwhile
                    request.done.set_result(action)
        asyncio.get_running_loop().call_soon(self._maybe_start)


class _Session:
    def __init__(self, policy: TransformersPolicy) -> None:
        self._policy = policy

    async def act(self, prompt_ids: Sequence[int], sampling: Sampling, *, timeout: float) -> Action:
        return await self._policy._act(prompt_ids, sampling, timeout)


@torch.inference_mode()
def sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    end_ids: frozenset[int],
    pad_id: int,
    weight_version: int = 0,
) -> list[Action]:
    """Sample one turn for each of B prompts.

    The log-prob of an id is that of the distribution that it was drawn from: temperature and
    truncation applied, in float32 (greedy turns report the untempered distribution).

    Args:
        prompts: B sequences of ids, of any lengths.
        samplings: B of them, with equal temperature, top_p and top_k.
    """
    was_training = model.training
    model.eval()
    try:
        return _sample(model, prompts, samplings, end_ids, pad_id, weight_version)
    finally:
        model.train(was_training)


def _sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    end_ids: frozenset[int],
    pad_id: int,
    weight_version: int,
) -> list[Action]:
    device = model.device
    rows = len(prompts)
    longest = max(len(p) for p in prompts)
    ids = torch.full((rows, longest), pad_id, dtype=torch.long)
    mask = torch.zeros((rows, longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    caps = [s.max_tokens for s in samplings]
    # One uniform number per token, drawn from the turn's own seed: inverse-CDF sampling below.
    uniforms = torch.stack(
        [
            torch.rand(max(caps), generator=torch.Generator().manual_seed(s.seed), dtype=torch.float64)
            for s in samplings
        ]
    ).to(device)
    ends = torch.tensor(sorted(end_ids), device=device)

    sampled: list[list[int]] = [[] for _ in range(rows)]
    logprobs: list[list[float]] = [[] for _ in range(rows)]
    finish = ["length"] * rows
    alive = list(range(rows))
    cache = DynamicCache()
    for step in range(max(caps)):
        logits = (
            model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        chosen, chosen_logprobs = _draw(logits, samplings[0], uniforms[:, step])
        ended = torch.isin(chosen, ends).tolist()
        kept: list[int] = []
        for position, (row, token, logprob) in enumerate(
            zip(alive, chosen.tolist(), chosen_logprobs.tolist(), strict=True)
        ):
            sampled[row].append(token)
            logprobs[row].append(logprob)
            if ended[position]:
                finish[row] = "stop"
            elif len(sampled[row]) < caps[row]:
                kept.append(position)
        if not kept:
            break
        if len(kept) < len(alive):
            index = torch.tensor(kept, device=device)
            alive = [alive[position] for position in kept]
            cache.batch_select_indices(index)
            chosen, mask, positions, uniforms = (
                chosen[index],
                mask[index],
                positions[index],
                uniforms[index],
            )
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones((len(alive), 1))], dim=1)
        positions = positions[:, -1:] + 1
    return [
        Action(tuple(t), tuple(lp), reason, weight_version)
        for t, lp, reason in zip(sampled, logprobs, finish, strict=True)
    ]


def _draw(
    logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One id per row from `logits` (B, V) and its log-prob; `uniform` (B,) lies in [0, 1)."""
    if sampling.temperature == 0:
        chosen = logits.argmax(-1)
        logps = logits.log_softmax(-1)
    else:
        logps = _truncate(logits / sampling.temperature, sampling).log_softmax(-1)
        cumulative = logps.double().exp().cumsum(-1)
        # The last cumulative value may fall short of 1 by rounding: scale, and never pass the end.
        target = uniform[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        chosen = chosen.clamp(max=logits.size(-1) - 1)
    return chosen, logps.gather(-1, chosen[:, None]).squeeze(-1)


def _truncate(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Mask what top_k and top_p leave out, shape (B, V)."""
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.size(-1)), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = (before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits
