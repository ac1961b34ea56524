"""Sampling turns from a transformers model: exact log-probs, and randomness that belongs to the turn.

The loop is our own because `generate` ties a row's randomness to its batch and reports processed scores
separately from the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.types import Action


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode while open; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]  # some may stay in evaluation mode
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.inference_mode()
def sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[TurnSampling],
    *,
    end_ids: frozenset[int],
    pad_id: int,
    weight_version: int = 0,
    wanted: Callable[[int], bool] = lambda row: True,
) -> list[Action]:
    """Sample one turn for each of B prompts.

    The log-prob of an id is that of the distribution that it was drawn from: temperature and
    truncation applied, in float32 (greedy turns report the untempered distribution).

    Args:
        prompts: B sequences of ids, of any lengths.
        samplings: B of them, with equal temperature, top_p and top_k.
        wanted: asked between tokens; a row that nobody wants any more ends with what it has.
    """
    with evaluating(model):
        batch = _Batch(model, prompts, samplings, pad_id)
        ends = torch.tensor(sorted(end_ids), device=model.device)
        sampled: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        finish = ["length"] * len(prompts)
        alive = list(range(len(prompts)))
        for step in range(max(s.max_tokens for s in samplings)):
            chosen, chosen_logprobs = _draw(batch.logits(), samplings[0], batch.uniforms[:, step])
            ended = torch.isin(chosen, ends).tolist()
            kept: list[int] = []
            for position, (row, token, logprob) in enumerate(
                zip(alive, chosen.tolist(), chosen_logprobs.tolist(), strict=True)
            ):
                sampled[row].append(token)
                logprobs[row].append(logprob)
                if ended[position]:
                    finish[row] = "stop"
                elif len(sampled[row]) < samplings[row].max_tokens and wanted(row):
                    kept.append(position)
            if not kept:
                break
            alive = [alive[position] for position in kept]
            batch.read(chosen, kept)
        return [
            Action(tuple(t), tuple(lp), reason, weight_version)
            for t, lp, reason in zip(sampled, logprobs, finish, strict=True)
        ]


class _Batch:
    """Rows that go on: what the model has read of them (its cache), what it reads next, their randomness.

    Prompts are padded on the left, so that all rows read their next token at the same place.

    Attributes:
        uniforms: (B, most tokens), one number per token, drawn from the turn's own seed: inverse-CDF sampling
            in `_draw`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[TurnSampling],
        pad_id: int,
    ) -> None:
        rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        self._model = model
        self._ids, self._mask = ids.to(model.device), mask.to(model.device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._first = True
        most = max(s.max_tokens for s in samplings)
        self.uniforms = torch.stack(
            [
                torch.rand(most, generator=torch.Generator().manual_seed(s.seed), dtype=torch.float64)
                for s in samplings
            ]
        ).to(model.device)

    def logits(self) -> torch.Tensor:
        """Of the next token, shape (B, V), float32."""
        prepare: Any = self._model.prepare_inputs_for_generation
        # What an architecture wants beside a cache that has read something is its own affair: Mamba takes no
        # mask then.
        inputs = prepare(
            self._ids,
            cache=self._cache,
            attention_mask=self._mask,
            position_ids=self._positions,
            use_cache=True,
            is_first_iteration=self._first,
            logits_to_keep=1,
        )
        self._first = False
        logits: torch.Tensor = self._model(**inputs).logits[:, -1].float()
        return logits

    def read(self, chosen: torch.Tensor, kept: Sequence[int]) -> None:
        """Go on with `chosen` (B,), of the rows at the places `kept` only."""
        if len(kept) < len(chosen):
            index = torch.tensor(kept, device=chosen.device)
            self._cache.reorder_cache(index)  # which layers of every kind have, and takes fewer rows as well
            chosen, self.uniforms = chosen[index], self.uniforms[index]
            self._mask, self._positions = self._mask[index], self._positions[index]
        self._ids = chosen[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(kept), 1))], dim=1)
        self._positions = self._positions[:, -1:] + 1


def _draw(
    logits: torch.Tensor, sampling: TurnSampling, uniform: torch.Tensor
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


def _truncate(logits: torch.Tensor, sampling: TurnSampling) -> torch.Tensor:
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
