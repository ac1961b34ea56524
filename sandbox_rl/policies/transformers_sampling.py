"""Sampling turns from a transformers model: exact log-probs, and randomness that belongs to the turn.

The loop is our own because `generate` ties a row's randomness to its batch and reports processed scores
apart from the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.types import Action

__all__ = ["sample_batch"]


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
    modes = [(module, module.training) for module in model.modules()]  # some may stay in eval mode for good
    model.eval()
    try:
        return _sample(model, prompts, samplings, end_ids, pad_id, weight_version, wanted)
    finally:
        for module, training in modes:
            module.training = training


def _sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[TurnSampling],
    end_ids: frozenset[int],
    pad_id: int,
    weight_version: int,
    wanted: Callable[[int], bool],
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
    prepare: Any = model.prepare_inputs_for_generation
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    for step in range(max(caps)):
        logits = (
            model(
                # What an architecture wants beside a cache that has read something is its own affair: Mamba
                # takes no mask then.
                **prepare(
                    ids,
                    cache=cache,
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=True,
                    is_first_iteration=step == 0,
                    logits_to_keep=1,
                )
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
            elif len(sampled[row]) < caps[row] and wanted(row):
                kept.append(position)
        if not kept:
            break
        if len(kept) < len(alive):
            index = torch.tensor(kept, device=device)
            alive = [alive[position] for position in kept]
            cache.reorder_cache(index)  # which layers of every kind have, and takes fewer rows as well
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
