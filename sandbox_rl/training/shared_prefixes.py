"""Rows with common beginnings as one packed row: what they share is computed once, forward and backward.

The episodes of a group begin with the same prompt, and an update computes it as often as there are episodes.
Here the rows of a forward pass become a radix tree: each segment of tokens stands once in the packed row, and
attends to the tokens on its path from the root. Log-probs are those of the rows one by one: no token sees
another one than before, at another position, or in another order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from sandbox_rl.training.agreement import any_of
from sandbox_rl.training.micro_batches import largest_of
from sandbox_rl.training.tree_attention import PackingError, tree_attention
from sandbox_rl.training.tree_check import check_packing, check_tree_config
from sandbox_rl.training.views import LossInputs

SMALLEST_SAVING = 0.1
"""The share of tokens below which rows are not packed: gathering keys and values along paths costs too."""

LARGEST_KERNEL_GAP = 0.05
"""Of attention in bfloat16, whose values are of the order of 1."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """B rows as N packed tokens.

    Args:
        ids, positions: shape (N,), each token and its place in the rows that it belongs to.
        places: shape (B, W), where in the packed row each token of a row of at most W tokens is; 0 behind
            its end. Two rows share a token only if they agree on the next one too: a packed token has one
            label.
        attention: what `tree_attention` is told.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    attention: dict[str, Any]


def rows_of(ids: torch.Tensor, mask: torch.Tensor) -> list[np.ndarray]:
    """The tokens of each row, where the mask is 1; both of shape (B, T)."""
    kept = mask.bool().cpu().numpy()
    return [row[where] for row, where in zip(ids.cpu().numpy(), kept, strict=True)]


def plan_packed(
    rows: Sequence[np.ndarray], budget: int | None, device: torch.device
) -> list[list[int]] | None:
    """Indices of rows in parts of at most `budget` packed tokens; None where too little would be saved.

    Rows with a common beginning follow each other. With a budget every process must call it, with equally
    many rows, and each part holds equally many on all: it is planned by the largest costs that any has.

    Args:
        budget: None for no bound: one part, and no exchange between processes.
        device: where processes exchange numbers.
    """
    order = _sorted(rows)
    alone = [len(rows[row]) for row in order]
    beside = alone[:1] + [_further(rows[a], rows[b]) for a, b in pairwise(order)]
    if budget is not None:
        both = largest_of([*alone, *beside], device)
        alone, beside = both[: len(rows)], both[len(rows) :]
    if sum(beside) > (1 - SMALLEST_SAVING) * sum(alone):
        return None
    parts: list[list[int]] = []
    size = 0
    for row, first, further in zip(order, alone, beside, strict=True):
        if parts and (budget is None or size + further <= budget):
            parts[-1].append(row)
            size += further
        else:
            parts.append([row])
            size = first
    return parts


def plan_inputs(inputs: LossInputs, budget: int) -> list[list[int]] | None:
    """As `plan_packed`, of rows of TRL's `compute_loss` inputs."""
    ids, mask = (
        torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
    )
    return plan_packed(rows_of(ids, mask), budget, ids.device)


def pack_rows(rows: Sequence[np.ndarray]) -> PackedRows:
    """Rows of token ids, each shape (T,) with T > 0, in any order."""
    tree = _Tree(rows)
    tree.grow(0, len(rows), 0, np.empty(0, dtype=np.int64))
    starts = np.cumsum([0, *(len(ids) for ids in tree.ids)])
    paths = np.cumsum([0, *(len(path) for path in tree.paths)])
    return PackedRows(
        ids=torch.from_numpy(np.concatenate(tree.ids)),
        positions=torch.from_numpy(np.concatenate(tree.positions)),
        places=torch.from_numpy(tree.places),
        attention={
            "tree_kv_index": torch.from_numpy(np.concatenate(tree.paths)),
            "tree_cu_seqlens_q": torch.from_numpy(starts.astype(np.int32)),
            "tree_cu_seqlens_k": torch.from_numpy(paths.astype(np.int32)),
            "tree_max_seqlen_q": int(np.diff(starts).max()),
            "tree_max_seqlen_k": int(np.diff(paths).max()),
        },
    )


class _Tree:
    """Segments of a radix tree, from the root on."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self._order = _sorted(rows)
        self._rows = [rows[row] for row in self._order]
        self._size = 0
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.paths: list[np.ndarray] = []
        self.places = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)

    def grow(self, low: int, high: int, depth: int, path: np.ndarray) -> None:
        """Add the sorted rows `low` to `high`, which agree on their first `depth` tokens, below a path."""
        first, last = self._rows[low], self._rows[high - 1]
        common = _common(first, last)  # of all between them too: they are sorted
        alike = common == len(first) == len(last)
        end = (
            common if alike else max(common - 1, depth)
        )  # the token before a fork has another next one in each
        if end > depth:
            here = np.arange(self._size, self._size + end - depth)
            self._size += end - depth
            self.ids.append(first[depth:end])
            self.positions.append(np.arange(depth, end))
            path = np.concatenate([path, here])
            self.paths.append(path)
            self.places[self._order[low:high], depth:end] = here
        if alike:
            return
        start = low
        for stop in range(low + 1, high + 1):
            if stop == high or _next(self._rows[stop], common) != _next(self._rows[start], common):
                self.grow(start, stop, end, path)
                start = stop


def _sorted(rows: Sequence[np.ndarray]) -> list[int]:
    """Indices of rows in the order of their tokens; a row comes before those that it begins."""
    # Big-endian bytes sort as the tokens do.
    return sorted(range(len(rows)), key=lambda row: rows[row].astype(">u4").tobytes())


def _further(one: np.ndarray, other: np.ndarray) -> int:
    """How many packed tokens a row adds to the one before it."""
    common = _common(one, other)
    return 0 if common == len(one) == len(other) else len(other) - max(common - 1, 0)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two rows have in common from their beginning."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if differ.size else length


def _next(row: np.ndarray, place: int) -> int:
    return int(row[place]) if place < len(row) else -1


def shares_prefixes(model: PreTrainedModel, *, low: bool, device: torch.device) -> bool:
    """Prepare a model for packed rows; whether it computes on them what it computes on rows one by one.

    Every process must call it, and gets the same answer. Where it is no, one line says why.

    Args:
        model: not wrapped by anything but peft's adapters.
        low: whether forward passes of training are computed in bfloat16.
        device: that it will train on; a sharded model gets there later.
    """
    reason: str | None = None
    try:
        reason = _obstacle(model, low=low, device=device)
        if reason is None:
            path = str(model.name_or_path)
            check_tree_config(model.config, path=path, cuda=device.type == "cuda")
            _offer_packed_rows(model)
            check_packing(model, low=low, path=path)
    except PackingError as error:
        reason = error.reason
    except Exception as error:  # it was a trial: whatever a model or a kernel does not take, rows are padded
        reason = f"the trial failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if any_of(reason is not None):
        said = reason or "another process says why"
        logger.warning(
            "update.share_prefixes: what rows have in common is computed for each of them: %s", said
        )
        return False
    return True


def _obstacle(model: PreTrainedModel, *, low: bool, device: torch.device) -> str | None:
    """What is in the way besides the architecture."""
    if device.type == "cuda" and not low:
        return "the kernel on CUDA computes in bfloat16, and this run in float32"
    if dropped := next((n for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0), None):
        return f"{dropped} drops values, others in each row"
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return "DeepSpeed has divided the weights, so that it cannot be tried"
    name = model.config.get_text_config()._attn_implementation
    if name not in AttentionInterface():
        return f"the attention {name!r} is the model's own"
    gap = _kernel_gap(model, device)
    return None if gap <= LARGEST_KERNEL_GAP else f"the kernel on {device.type} is off by {gap:.3f}"


@torch.no_grad()
def _kernel_gap(model: PreTrainedModel, device: torch.device) -> float:
    """Largest difference of attention over packed rows on a device from that on the CPU in float32.

    A model that is sharded later cannot be tried where it will be; the kernel can.
    """
    text = model.config.get_text_config()
    heads = int(text.num_attention_heads)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    packed = pack_rows([np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 6])])
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, n, len(packed.ids), size, generator=generator) for n in (heads, groups, groups)]

    def attended(where: torch.device, dtype: torch.dtype) -> torch.Tensor:
        told: dict[str, Any] = {
            k: v.to(where) if torch.is_tensor(v) else v for k, v in packed.attention.items()
        }
        query, key, value = (x.to(where, dtype) for x in given)
        out, _ = tree_attention(nn.Module(), query, key, value, None, **told)
        return out.float().cpu()

    there = attended(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return float((there - attended(torch.device("cpu"), torch.float32)).abs().max())


def _offer_packed_rows(model: PreTrainedModel) -> None:
    name = model.config.get_text_config()._attn_implementation
    plain = AttentionInterface()[name]
    if not isinstance(plain, _Attention):
        AttentionInterface.register(name, _Attention(plain))


class _Attention:
    """An attention of transformers that takes packed rows too; it keeps its name, which models ask for."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self._plain = plain

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if "tree_kv_index" not in kwargs:
            return self._plain(module, *args, **kwargs)
        kwargs.pop("attention_mask", None)
        query, key, value, *_ = args  # the mask says nothing here
        return tree_attention(module, query, key, value, None, **kwargs)
