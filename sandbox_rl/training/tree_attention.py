"""Attention over TRL's prefix-packed rows, in place of the kernel that TRL would fetch from the Hub.

Each packed segment attends to the keys and values on its root-to-segment path (TRL's `TreeRow`). On CUDA
this is torch's variable-length attention; elsewhere a loop of scaled dot products, for tests and laptops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from trl.experimental.async_grpo.packing import TREE_ATTENTION

__all__ = ["register_tree_attention", "tree_attention"]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree_kv_index: torch.Tensor,
    tree_cu_seqlens_q: torch.Tensor,
    tree_cu_seqlens_k: torch.Tensor,
    tree_max_seqlen_q: int,
    tree_max_seqlen_k: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every segment over its path, aligned at their ends.

    Args:
        query: shape (1, H, N, D) of N packed tokens.
        key, value: shape (1, G, N, D); G divides H.
        tree_kv_index: shape (K,), the packed positions of all paths, end to end.
        tree_cu_seqlens_q, tree_cu_seqlens_k: shape (S + 1,), where segments and their paths begin.

    Returns:
        shape (1, N, H, D), and None for the weights.
    """
    q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))
    k, v = k.index_select(0, tree_kv_index), v.index_select(0, tree_kv_index)
    attend = _varlen if q.is_cuda else _loop
    window = sliding_window or 0
    out = attend(
        q,
        k,
        v,
        tree_cu_seqlens_q,
        tree_cu_seqlens_k,
        int(tree_max_seqlen_q),
        int(tree_max_seqlen_k),
        scaling,
        window,
    )
    return out.unsqueeze(0), None


def register_tree_attention() -> None:
    """Take TRL's place under its name. After a trainer was built: building it registers TRL's own."""
    AttentionInterface.register(TREE_ATTENTION, tree_attention)


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scaling: float | None,
    window: int,
) -> torch.Tensor:
    """On a GPU, in half precision: the kernel takes nothing else."""
    from torch.nn.attention.varlen import varlen_attn

    dtype = q.dtype if q.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    groups = q.shape[1] // k.shape[1]
    out: Any = varlen_attn(
        q.to(dtype),
        k.to(dtype).repeat_interleave(groups, 1),
        v.to(dtype).repeat_interleave(groups, 1),
        cu_q,
        cu_k,
        max_q,
        max_k,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),  # nothing ahead: causal, aligned at the end
    )
    attended: torch.Tensor = out
    return attended.to(q.dtype)


def _loop(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scaling: float | None,
    window: int,
) -> torch.Tensor:
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    groups = q.shape[1] // k.shape[1]
    parts = []
    for i in range(len(starts_q) - 1):
        segment = q[starts_q[i] : starts_q[i + 1]].transpose(0, 1)
        keys, values = (
            x[starts_k[i] : starts_k[i + 1]].transpose(0, 1).repeat_interleave(groups, 0) for x in (k, v)
        )
        length, path = segment.shape[1], keys.shape[1]
        seen = torch.ones(length, path, dtype=torch.bool, device=q.device).tril(path - length)
        if window:
            seen &= ~torch.ones_like(seen).tril(path - length - window)
        parts.append(
            functional.scaled_dot_product_attention(
                segment[None], keys[None], values[None], attn_mask=seen, scale=scaling
            )[0].transpose(0, 1)
        )
    return torch.cat(parts)
