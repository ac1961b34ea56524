"""Log-probs of long rows: float32, tile by tile, without padding and without an attention mask.

TRL 1.16 gives a model a head that projects onto the vocabulary in tiles of 4,096 tokens by 32,768 entries,
forward and again backward, so full logits (B, T, V) never exist. Two things are put right here, through the
model's forward, which both trainers call:

- The tiles are computed in float32. Under bf16 they would be rounded to 8 bits before the softmax.
- Rows are moved to the left, and the attention mask is left out. Padding then comes after every token that
  counts, where causal attention cannot see it. With a mask, transformers makes one of (B, 1, T, T) as soon as
  one row is shorter than another (4 GiB per row of 65,536 tokens), which fast attention kernels do not take.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from sandbox_rl.training.micro_batches import agreed_lengths, plan_parts

__all__ = ["PER_TOKEN", "align_rows", "float32_log_probs"]

PER_TOKEN = ("log_probs", "entropy")
"""What TRL's trainers use of a position."""


def float32_log_probs(
    model: Any, *, temperature: float, outputs: tuple[str, ...] = PER_TOKEN
) -> PreTrainedModel:
    """Give a model TRL's tiled head anew, with tiles in float32; after TRL's trainer was built.

    Weights stay in their own type: a tile of the head is converted when it is used.

    Args:
        model: a causal language model, or one wrapped by peft.

    Returns:
        The model whose forward was replaced.
    """
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    add_fused_lm_head(base, temperature=temperature, cast_lm_head_to_fp32=True, outputs=outputs)
    return base


def align_rows(model: PreTrainedModel, *, token_budget: int | None = None) -> None:
    """Make a forward with `fused_lm_head=True` compute on rows aligned at the left, without a mask.

    Args:
        model: with TRL's head, not wrapped.
        token_budget: tokens at once where no gradient is needed; there the rows are computed in parts.
            With a gradient all rows are computed at once: who wants parts takes them beforehand.
    """
    inner = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        self: Any,
        *args: Any,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> Any:
        if (
            fused_lm_head
            and attention_mask is not None
            and labels is not None
            and {name for name, value in kwargs.items() if value is not None} == {"input_ids"}
        ):
            return _in_parts(inner, kwargs["input_ids"], attention_mask, labels, token_budget)
        given = {"attention_mask": attention_mask, "labels": labels, "fused_lm_head": fused_lm_head or None}
        return inner(*args, **kwargs, **{name: value for name, value in given.items() if value is not None})

    model.forward = types.MethodType(forward, model)


def _in_parts(
    inner: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, token_budget: int | None
) -> FusedCausalLMOutput:
    first, lengths = mask.argmax(-1), mask.sum(-1).clamp(min=2)
    sizes: list[int] = lengths.tolist()
    budget = None if torch.is_grad_enabled() else token_budget
    bounds = None if budget is None else agreed_lengths(sizes, ids.device)
    parts = plan_parts(sizes, budget, bounds=bounds)
    computed = []
    for rows in parts:
        chosen = torch.tensor(rows, device=ids.device)
        computed.append(_aligned(inner, ids[chosen], labels[chosen], first[chosen], lengths[chosen]))
    back = torch.tensor([row for part in parts for row in part], device=ids.device).argsort()
    return FusedCausalLMOutput(
        **{name: torch.cat([output[name] for output in computed])[back] for name in computed[0]}
    )


def _aligned(
    inner: Any, ids: torch.Tensor, labels: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What `inner` gives for the next token of every position, (B, T - 1), zero where there is none.

    Args:
        ids, labels: shape (B, T); -100 labels what does not count.
        first, lengths: shape (B,), where each row's tokens begin and how many there are.
    """
    width = int(lengths.max())
    column = torch.arange(width, device=ids.device)
    source = (first[:, None] + column).clamp(max=ids.size(1) - 1)
    moved = labels.gather(1, source).masked_fill(column >= lengths[:, None], -100)
    output = inner(input_ids=ids.gather(1, source), labels=moved, fused_lm_head=True)

    target = torch.arange(ids.size(1) - 1, device=ids.device) - first[:, None]
    within = (target >= 0) & (target < lengths[:, None] - 1)
    target = target.clamp(0, width - 2)

    found = {name: getattr(output, name) for name in PER_TOKEN}
    return {
        name: values.gather(1, target).masked_fill(~within, 0)
        for name, values in found.items()
        if values is not None
    }
