"""Log-probs of long rows: float32, tile by tile, without padding and without an attention mask.

TRL 1.16 gives a model a head that projects onto the vocabulary in tiles of 4,096 tokens by 32,768 entries,
forward and again backward, so full logits (B, T, V) never exist. Three things are put right here, through the
model's forward, which both trainers call:

- The tiles are computed in float32. Under bf16 they would be rounded to 8 bits before the softmax.
- Rows are moved to the left, and the attention mask is left out. Padding then comes after every token that
  counts, where causal attention cannot see it. With a mask, transformers makes one of (B, 1, T, T) as soon as
  one row is shorter than another (4 GiB per row of 65,536 tokens), which fast attention kernels do not take.
- What rows have in common from their beginning is computed once (`shared_prefixes`), where the model can.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from sandbox_rl.training.micro_batches import largest_of, plan_parts
from sandbox_rl.training.shared_prefixes import pack_rows, plan_packed, rows_of

Forward = Callable[..., FusedCausalLMOutput]
"""Of a model with TRL's head."""

PER_TOKEN = ("log_probs", "entropy")
"""What TRL's trainers use of a position."""


def float32_log_probs(
    model: PreTrainedModel | PeftModel, *, temperature: float, outputs: tuple[str, ...] = PER_TOKEN
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


def align_rows(
    model: PreTrainedModel, *, token_budget: int | None = None, share_prefixes: bool = False
) -> None:
    """Make a forward with `fused_lm_head=True` compute on rows aligned at the left, without a mask.

    Args:
        model: with TRL's head, not wrapped.
        token_budget: tokens at once where no gradient is needed; there the rows are computed in parts.
            With a gradient all rows are computed at once: who wants parts takes them beforehand.
        share_prefixes: whether what rows have in common is computed once; `shares_prefixes` tells who can.
    """
    inner = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        self: PreTrainedModel,
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
            ids = kwargs["input_ids"]
            return _in_parts(inner, ids, attention_mask, labels, token_budget, share_prefixes)
        given = {"attention_mask": attention_mask, "labels": labels, "fused_lm_head": fused_lm_head or None}
        return inner(*args, **kwargs, **{name: value for name, value in given.items() if value is not None})

    model.forward = types.MethodType(forward, model)


def _in_parts(
    inner: Forward,
    ids: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor,
    token_budget: int | None,
    share_prefixes: bool,
) -> FusedCausalLMOutput:
    first, lengths = mask.argmax(-1), mask.sum(-1).clamp(min=2)
    column = torch.arange(int(lengths.max()), device=ids.device)
    source = (first[:, None] + column).clamp(max=ids.size(1) - 1)
    at_the_left = ids.gather(1, source)
    targets = labels.gather(1, source).masked_fill(column >= lengths[:, None], -100)
    budget = None if torch.is_grad_enabled() else token_budget
    rows = rows_of(ids, mask) if share_prefixes else []
    parts = plan_packed(rows, budget, ids.device) if share_prefixes else None
    packed = parts is not None
    if parts is None:
        sizes: list[int] = lengths.tolist()
        bounds = None if budget is None else largest_of(sorted(sizes, reverse=True), ids.device)
        parts = plan_parts(sizes, budget, bounds=bounds)
    computed = []
    for part in parts:
        chosen, width = torch.tensor(part, device=ids.device), int(lengths[part].max())
        if packed:
            found = _packed(inner, [rows[i] for i in part], targets[chosen, :width])
        else:
            found = _aligned(inner, at_the_left[chosen, :width], targets[chosen, :width])
        computed.append({n: functional.pad(values, (0, len(column) - width)) for n, values in found.items()})
    back = torch.tensor([row for part in parts for row in part], device=ids.device).argsort()
    whole = {name: torch.cat([found[name] for found in computed])[back] for name in computed[0]}
    return FusedCausalLMOutput(
        **{name: _moved_back(values, ids.size(1), first, lengths) for name, values in whole.items()}
    )


def _aligned(inner: Forward, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `inner` gives for the next token of every position, (B, W - 1).

    Args:
        ids, labels: shape (B, W), of rows that begin at the left; -100 labels what does not count.
    """
    return _per_token(inner(input_ids=ids, labels=labels, fused_lm_head=True))


def _packed(inner: Forward, rows: Sequence[np.ndarray], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `_aligned`, with what the rows have in common computed once; zero where nothing counts.

    Args:
        rows: the tokens of each.
    """
    packed, device = pack_rows(rows), labels.device
    at, following = packed.places[:, :-1].to(device), labels[:, 1:]
    counts = following != -100
    shift_labels = torch.full_like(packed.ids, -100, device=device)
    shift_labels[at[counts]] = following[counts]
    output = inner(
        input_ids=packed.ids[None].to(device),
        position_ids=packed.positions[None].to(device),
        # Of four dimensions, it is handed on as it is; without it one of (1, 1, N, N) would be made.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        shift_labels=shift_labels[None],
        fused_lm_head=True,
        **{k: v.to(device) if torch.is_tensor(v) else v for k, v in packed.attention.items()},
    )
    return {name: values[0][at].masked_fill(~counts, 0) for name, values in _per_token(output).items()}


def _per_token(output: FusedCausalLMOutput) -> dict[str, torch.Tensor]:
    found = {name: getattr(output, name) for name in PER_TOKEN}
    return {name: values for name, values in found.items() if values is not None}


def _moved_back(values: torch.Tensor, width: int, first: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Values of aligned positions, (B, W - 1), where the rows were, (B, T - 1); zero where none was."""
    target = torch.arange(width - 1, device=values.device) - first[:, None]
    within = (target >= 0) & (target < lengths[:, None] - 1)
    return values.gather(1, target.clamp(0, values.size(1) - 1)).masked_fill(~within, 0)
