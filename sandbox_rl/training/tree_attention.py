"""Attention over TRL's prefix-packed rows, in place of the kernel that TRL would fetch from the Hub.

Each packed segment attends to the keys and values on its root-to-segment path (TRL's `TreeRow`). On CUDA
this is torch's variable-length attention; elsewhere a loop of scaled dot products, for tests and laptops.
What a model asks of its attention and is not done here is refused: log-probs without it are wrong in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from trl.experimental.async_grpo.packing import TREE_ATTENTION

from sandbox_rl.errors import ModelError

_OF_OTHERS = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "return_dict",
        "output_hidden_states",
        "output_router_logits",
    }
    | {"num_items_in_batch", "logits_to_keep"}
)
"""Arguments that reach every attention with the model's own and say nothing to it."""


class PackingError(ModelError):
    """Packed rows cannot be computed with this model.

    Args:
        reason: what is in the way, for those who can do without.
    """

    def __init__(self, reason: str, rest: str = ", which mode 'async' does not implement") -> None:
        super().__init__(f"{reason}{rest}; set mode: sync, or train another architecture")
        self.reason = reason


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
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every segment over its path, aligned at their ends.

    Args:
        query: shape (1, H, N, D) of N packed tokens.
        key, value: shape (1, G, N, D); G divides H.
        tree_kv_index: shape (K,), the packed positions of all paths, end to end.
        tree_cu_seqlens_q, tree_cu_seqlens_k: shape (S + 1,), where segments and their paths begin.
        softcap: scores are `softcap * tanh(scores / softcap)` (Gemma 2, arXiv 2408.00118); not on CUDA.
        s_aux: shape (H,), a score per head that takes part in the softmax and has no value (attention sinks
            of gpt-oss); not on CUDA.

    Returns:
        shape (1, N, H, D), and None for the weights.

    Raises:
        PackingError: the model asks for what is not implemented.
    """
    _refuse(module, attention_mask, is_causal, sliding_window, others)
    if query.is_cuda and (softcap or s_aux is not None):
        raise _not_done(module, "softcap" if softcap else "s_aux", "on CUDA")
    q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))
    k, v = k.index_select(0, tree_kv_index), v.index_select(0, tree_kv_index)
    longest = int(tree_max_seqlen_q), int(tree_max_seqlen_k)
    segments = _Segments(tree_cu_seqlens_q, tree_cu_seqlens_k, longest, sliding_window or 0)
    if q.is_cuda:
        out = _varlen(q, k, v, segments, scaling)
    else:
        out = _loop(q, k, v, segments, scaling, softcap=softcap, sinks=s_aux)
    return out.unsqueeze(0), None


def register_tree_attention() -> None:
    """Take TRL's place under its name. After a trainer was built: building it registers TRL's own."""
    AttentionInterface.register(TREE_ATTENTION, tree_attention)


@dataclass(frozen=True, slots=True)
class _Segments:
    """Where segments `q` and their paths `k` begin, shape (S + 1,); the longest of both; tokens that are seen
    back, 0 for all."""

    q: torch.Tensor
    k: torch.Tensor
    longest: tuple[int, int]
    window: int


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: _Segments, scaling: float | None
) -> torch.Tensor:
    """On a GPU, in half precision: the kernel takes nothing else."""
    from torch.nn.attention.varlen import varlen_attn

    dtype = q.dtype if q.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    groups = q.shape[1] // k.shape[1]
    out: Any = varlen_attn(
        q.to(dtype),
        k.to(dtype).repeat_interleave(groups, 1),
        v.to(dtype).repeat_interleave(groups, 1),
        segments.q,
        segments.k,
        *segments.longest,
        scale=scaling,
        window_size=(segments.window - 1, 0),  # nothing ahead: causal, aligned at the end
    )
    attended: torch.Tensor = out
    return attended.to(q.dtype)


def _loop(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: _Segments,
    scaling: float | None,
    *,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    starts_q, starts_k = segments.q.tolist(), segments.k.tolist()
    groups = q.shape[1] // k.shape[1]
    parts = []
    for i in range(len(starts_q) - 1):
        segment = q[starts_q[i] : starts_q[i + 1]].transpose(0, 1)
        keys, values = (
            x[starts_k[i] : starts_k[i + 1]].transpose(0, 1).repeat_interleave(groups, 0) for x in (k, v)
        )
        length, path = segment.shape[1], keys.shape[1]
        seen = torch.ones(length, path, dtype=torch.bool, device=q.device).tril(path - length)
        if segments.window:
            seen &= ~torch.ones_like(seen).tril(path - length - segments.window)
        if softcap or sinks is not None:
            attended = _scored(segment, keys, values, seen, scaling, softcap, sinks)
        else:
            attended = functional.scaled_dot_product_attention(
                segment[None], keys[None], values[None], attn_mask=seen, scale=scaling
            )[0]
        parts.append(attended.transpose(0, 1))
    return torch.cat(parts)


def _scored(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with scores changed before the softmax; shapes (H, L, D), (H, P, D), (H, P, D), (L, P)."""
    scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(-1, q.shape[1], 1)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return weights[..., : k.shape[1]] @ v


def _refuse(
    module: torch.nn.Module,
    attention_mask: torch.Tensor | None,
    is_causal: bool | None,
    window: int | None,
    others: dict[str, Any],
) -> None:
    """Raise where an argument, or the layer itself, wants more than causal attention."""
    if attention_mask is not None:
        raise _not_done(module, "attention_mask")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise _not_done(module, "is_causal: false")
    for name, value in others.items():
        neutral = value is None or (isinstance(value, bool | int | float) and not value)
        if not neutral and name not in _OF_OTHERS:
            shown = f"{name}: {value}" if isinstance(value, bool | int | float | str) else name
            raise _not_done(module, shown)
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    place = getattr(module, "layer_idx", None)
    kind = kinds[place] if kinds and place is not None and place < len(kinds) else "full_attention"
    if kind == "chunked_attention" or (kind == "sliding_attention" and not window):
        raise _not_done(module, kind)


def _not_done(module: torch.nn.Module, what: str, where: str = "") -> PackingError:
    rest = f", which mode 'async' does not implement{f' {where}' if where else ''}"
    return PackingError(f"{type(module).__name__} asks its attention for {what}", rest)
