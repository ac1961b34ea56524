"""Whether a model computes on prefix-packed rows what it computes on rows one by one.

Packing goes around a model's own masks and kernels, so whatever an architecture adds to causal attention, and
every layer that carries a state along the row, would change log-probs in silence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from trl.experimental.async_grpo.packing import TreeRow

from sandbox_rl.policies.transformers_sampling import evaluating
from sandbox_rl.training.precision import computing
from sandbox_rl.training.probe import Model, plain_forward
from sandbox_rl.training.tree_attention import PackingError

LARGEST_GAP = 1e-3
"""Nats per token on average in float32."""

LARGEST_GAP_LOW = 0.1
"""The same where a kernel computes in bfloat16."""

_COMMON, _TAILS = 12, (9, 5)


def check_tree_config(
    config: PretrainedConfig, *, path: str, cuda: bool, trust_remote_code: bool = False
) -> None:
    """Refuse, before weights are loaded, what packed rows are not computed with.

    Args:
        cuda: the kernel of CUDA will compute, which has neither softcap nor sinks.

    Raises:
        PackingError: the first such thing.
    """
    text: Any = config.get_text_config()
    others = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others:
        raise _refused(path, f"layers of type {sorted(others)[0]!r}")
    for name in ("attention_dropout", "attn_dropout", "attn_pdrop"):
        if getattr(text, name, None):
            raise _refused(path, f"{name}: {getattr(text, name)}")
    softcap = getattr(text, "attn_logit_softcapping", None)
    if cuda and softcap:
        raise _refused(path, f"attn_logit_softcapping: {softcap}", " on CUDA")
    try:
        with torch.device("meta"):  # the shape alone
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), trust_remote_code=trust_remote_code
            )
    except Exception:  # loading the weights will say why, and then the model itself is tried
        return
    if model._is_stateful:
        raise _refused(path, "a state that layers carry from token to token")
    if cuda and any(name.endswith("sinks") for name, _ in model.named_parameters()):
        raise _refused(path, "attention sinks", " on CUDA")


def check_packing(model: Model, *, low: bool, path: str) -> None:
    """Compute rows packed and one by one, and compare; no exchange between processes is made.

    Args:
        model: with tree attention, registered; perhaps wrapped by peft. One without weights, as processes
            have that will get them from the first, is not tried.
        low: whether forward passes of training are computed in bfloat16.

    Raises:
        PackingError: they differ, or an argument of the model's attention is not implemented.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    gap = packing_gap(model, torch.bfloat16 if low else torch.float32)
    largest = LARGEST_GAP_LOW if low or model.device.type == "cuda" else LARGEST_GAP
    if not gap <= largest:
        raise PackingError(
            f"model.path: {path!r} ({type(model).__name__}): packed and plain rows differ by {gap:.3f} nats "
            f"per token on average, expected at most {largest:g}",
            "",
        )


@torch.no_grad()
def packing_gap(model: Model, dtype: torch.dtype) -> float:
    """Mean absolute difference of log-probs of two rows with a common start, packed and one by one.

    Raises:
        PackingError: an argument of the model's attention is not implemented.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    common, *tails = (
        torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (_COMMON, *_TAILS)
    )
    rows = [[*common, *tail] for tail in tails]
    with evaluating(model), computing(model.device, dtype):
        model.train()
        packed_log_probs(model, rows)  # dropout is only asked for here; what comes out is not looked at
        model.eval()
        packed = packed_log_probs(model, rows)
        with plain_forward(model):
            plain = torch.cat([plain_log_probs(model, row) for row in rows])
    return float((packed - plain).abs().mean())


def packed_log_probs(model: Model, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probs of all tokens of all rows but the first of each, shape (N,), computed in one packed row.

    Args:
        model: with tree attention, registered.
    """
    tree = TreeRow()
    for number, row in enumerate(rows):
        tree.add(
            {
                "input_ids": np.array(row),
                "completion_mask": np.array([0] + [1] * (len(row) - 1)),
                "old_log_probs": np.zeros(len(row), dtype=np.float32),
                "advantage": 1.0,
                "group_id": number,
            }
        )
    batch = {name: value.to(model.device) for name, value in tree.pack().items() if torch.is_tensor(value)}
    longest_q, longest_k = batch["tree_max_seqlens"].tolist()
    logits = model(
        batch["input_ids"][None],
        position_ids=batch["position_ids"][None],
        use_cache=False,
        tree_kv_index=batch["tree_kv_index"],
        tree_cu_seqlens_q=batch["tree_cu_seqlens_q"],
        tree_cu_seqlens_k=batch["tree_cu_seqlens_k"],
        tree_max_seqlen_q=longest_q,
        tree_max_seqlen_k=longest_k,
    ).logits[0]
    targets = torch.tensor([token for row in rows for token in row[1:]], device=logits.device)
    chosen = logits[batch["token_index"]].float().log_softmax(-1)
    found: torch.Tensor = chosen.gather(-1, targets[:, None]).squeeze(-1)
    return found


def plain_log_probs(model: Model, row: Sequence[int]) -> torch.Tensor:
    """Log-probs of the tokens of a row but its first, shape (T - 1,); call it within `plain_forward`."""
    ids = torch.tensor([list(row)], device=model.device)
    logits = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    found: torch.Tensor = logits.gather(-1, ids[0, 1:, None]).squeeze(-1)
    return found


def _refused(path: str, what: str, where: str = "") -> PackingError:
    return PackingError(f"model.path: {path!r} has {what}", f", which mode 'async' does not implement{where}")
