"""Whether the in-process sampler and the trainer see one policy: two turns are sampled and scored again.

An architecture whose cache does not continue what it has read samples from a distribution that no loss knows.
Nothing of that shows in a run but a policy that does not learn.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedModel

from sandbox_rl.errors import ModelError
from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.policies.transformers_sampling import evaluating, sample_batch
from sandbox_rl.training.log_probs import align_rows, float32_log_probs
from sandbox_rl.training.precision import computing

LARGEST_GAP = 0.01
"""Nats per token on average, in float32: rounding is a thousandth of it."""

_PROMPTS, _TURNS = (7, 19, 12), (24, 9, 16)
"""Tokens of prompts and turns: rows are padded, and leave their batch one by one."""


def check_sampler(model: PreTrainedModel, dtype: torch.dtype, *, path: str, largest: float) -> float:
    """The mean gap between sampler and trainer, in nats per token.

    Args:
        dtype: what forward passes of training are computed in.
        path: of the model, for the message.
        largest: gap in bfloat16, whose rounding is larger than `LARGEST_GAP`.

    Raises:
        ModelError: they differ, or the model cannot be sampled from token by token.
    """
    largest = LARGEST_GAP if dtype == torch.float32 else max(largest, LARGEST_GAP)
    advice = "serve it (policy: {type: vllm}), or train another architecture"
    try:
        gap = sampler_gap(model, dtype)
    except Exception as error:  # whatever an architecture raises on a cache that is not its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model.path: {path!r} ({type(model).__name__}) cannot be sampled from in this process "
            f"({reason}); {advice}"
        ) from error
    if not gap <= largest:
        raise ModelError(
            f"model.path: {path!r} ({type(model).__name__}): sampler and trainer differ by {gap:.3f} nats "
            f"per token on average, expected at most {largest:g}; {advice}"
        )
    return gap


def sampler_gap(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Mean absolute difference of the log-probs of sampled tokens, computed as sampling and as loss."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    prompts = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in _PROMPTS]
    samplings = [TurnSampling(max_tokens=n, seed=i) for i, n in enumerate(_TURNS)]
    with computing(model.device, dtype):
        turns = sample_batch(model, prompts, samplings, end_ids=frozenset(), pad_id=0)
    ids, mask, labels = _rows(prompts, [turn.token_ids for turn in turns])
    scored = _scored(model, dtype, ids.to(model.device), mask.to(model.device), labels.to(model.device))
    first = max(_PROMPTS) - 1
    gaps = [
        (scored[row, first : first + len(turn.token_ids)] - torch.tensor(turn.logprobs)).abs()
        for row, turn in enumerate(turns)
    ]
    return float(torch.cat(gaps).mean())


def check_rope(config: PretrainedConfig, *, longest: int, path: str) -> None:
    """Refuse rotary embeddings that change with the length of what is computed together.

    A turn is sampled at other frequencies than the finished episode is scored with: no log-prob is right.

    Args:
        longest: tokens of the longest episode with its prompt.

    Raises:
        ModelError: they would change within an episode.
    """
    text: Any = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for kind in kinds:
        if kind.get("rope_type") not in ("dynamic", "longrope"):
            continue
        original = (
            kind.get("original_max_position_embeddings")
            or getattr(text, "original_max_position_embeddings", None)
            or text.max_position_embeddings
        )
        if longest > original:
            raise ModelError(
                f"model.path: {path!r} has rotary embeddings of type {kind['rope_type']!r}, which change "
                f"when an episode grows beyond {original} tokens, and episodes may have {longest}; lower "
                "episode.max_tokens, or set a fixed scaling such as yarn in the model's configuration"
            )


def _rows(
    prompts: list[list[int]], turns: list[tuple[int, ...]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels as TRL pads them: prompts on the left, turns on the right."""
    before = pad_sequence([torch.tensor(p) for p in prompts], True, padding_value=-1, padding_side="left")
    after = pad_sequence([torch.tensor(t) for t in turns], True, padding_value=-1)
    ids = torch.cat([before, after], dim=1)
    labels = torch.cat([torch.full_like(before, -100), after.masked_fill(after < 0, -100)], dim=1)
    return ids.clamp(min=0), (ids >= 0).long(), labels


@torch.no_grad()
def _scored(
    model: PreTrainedModel, dtype: torch.dtype, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Log-probs of the next token of every position, by the trainer's forward."""
    trained = copy.copy(model)  # which keeps its own forward, and has the same weights
    align_rows(float32_log_probs(trained, temperature=1.0))
    with evaluating(trained), computing(model.device, dtype):
        output = trained(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    scored: torch.Tensor = output.log_probs.float().cpu()
    return scored
