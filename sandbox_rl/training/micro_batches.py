"""Rows of a micro-batch in parts of a bounded number of tokens, and what each part's loss counts.

The parts are computed one after another, so the longest of them decides the memory that an update takes,
while the loss stays that of the whole micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed

__all__ = ["agreed_lengths", "coupling", "lengths_of", "loss_share", "part_of", "plan_parts"]

_PER_ROW = ("grpo", "sapo", "dr_grpo", "luspo")
"""Losses of TRL 1.16 that are a mean over the rows of a micro-batch."""

_PER_TOKEN = ("bnpo",)
"""Those that are a mean over its tokens."""

_SUMS = ("dapo", "cispo", "vespo")
"""Those that are a sum, divided by a count of the whole generation batch."""


def plan_parts(
    lengths: Sequence[int], budget: int | None, *, bounds: Sequence[int] | None = None
) -> list[list[int]]:
    """Indices of rows in parts of at most `budget` tokens with their padding, longest first if parted.

    Neighbours in length share a part, so that little is padded. A row longer than the budget is a part of
    its own.

    Args:
        lengths: tokens of each row.
        budget: of rows times longest row; None for no bound.
        bounds: of `agreed_lengths`, where several processes must take equally many rows at a time.
    """
    tokens = sorted(lengths, reverse=True) if bounds is None else bounds
    if budget is None or len(lengths) * tokens[0] <= budget:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    parts: list[list[int]] = []
    longest = 0
    for row, bound in zip(order, tokens, strict=True):
        if parts and (len(parts[-1]) + 1) * longest <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
            longest = bound
    return parts


def agreed_lengths(lengths: Sequence[int], device: torch.device) -> list[int]:
    """Of the longest row, the second and so on, the largest length of all processes.

    Parts planned by it hold equally many rows on each process: sharded models compute together, and TRL
    gathers metrics row by row. Every process must have the same number of rows.
    """
    ordered = sorted(lengths, reverse=True)
    if not (distributed.is_available() and distributed.is_initialized()):
        return ordered
    largest = torch.tensor(ordered, device=device)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    agreed: list[int] = largest.tolist()
    return agreed


def lengths_of(inputs: Mapping[str, Any]) -> list[int]:
    """Tokens of each row of TRL's `compute_loss` inputs, prompt and completion."""
    both: list[int] = (inputs["prompt_mask"].sum(-1) + inputs["completion_mask"].sum(-1)).tolist()
    return both


def part_of(inputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Those rows of TRL's `compute_loss` inputs; what is not per row stays."""
    count = inputs["completion_mask"].size(0)
    chosen = torch.tensor(rows, device=inputs["completion_mask"].device)
    return {
        key: value[chosen] if torch.is_tensor(value) and value.dim() and value.size(0) == count else value
        for key, value in inputs.items()
    }


def loss_share(loss_type: str, inputs: Mapping[str, Any], part: Mapping[str, Any]) -> torch.Tensor | float:
    """What TRL's loss of `part` is multiplied by, so that the parts of `inputs` add up to its loss."""
    if loss_type in _SUMS:
        return 1.0
    if loss_type in _PER_ROW:
        return len(part["completion_mask"]) / len(inputs["completion_mask"])
    if loss_type in _PER_TOKEN:
        share: torch.Tensor = _tokens(part) / _tokens(inputs).clamp(min=1)
        return share
    raise ValueError(f"loss_type {loss_type!r}: not known how its parts add up")


def coupling(args: Any) -> str | None:
    """The field of TRL's settings that takes the rows of a micro-batch together, if there is one."""
    if args.loss_type not in (*_PER_ROW, *_PER_TOKEN, *_SUMS):
        return f"loss_type={args.loss_type!r}"
    if args.top_entropy_quantile < 1:
        return f"top_entropy_quantile={args.top_entropy_quantile}"
    if args.entropy_coef or args.use_adaptive_entropy:
        return "entropy_coef"
    return None


def _tokens(inputs: Mapping[str, Any]) -> torch.Tensor:
    mask: torch.Tensor = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    return mask.sum()
