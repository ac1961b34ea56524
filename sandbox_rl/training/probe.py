"""The trainer's side of the audits that compare it with its sampler: log-probs under one hypothesis each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeAlias

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel
from trl.experimental.async_grpo.packing import TREE_ATTENTION

from sandbox_rl.audit.sampler import LogProbs, PublicationAudit, SamplerCause, TrainerScores
from sandbox_rl.policies.transformers_sampling import evaluating
from sandbox_rl.training.publication.merge import whole_tensor

Model: TypeAlias = PreTrainedModel | PeftModel

LONGEST = 512
"""Tokens of a row that are looked at in search of a cause."""

TRUNCATED_TOKENS = 128
"""Of them, those that truncation is looked for in: each takes the whole vocabulary in order."""

TOP_K, TOP_P, MIN_P = (10, 20, 40, 50, 64, 100), (0.99, 0.95, 0.9, 0.8, 0.7, 0.5), (0.01, 0.02, 0.05, 0.1)
"""Truncations in common use. Any other top_p is told by the shares that log-probs themselves imply."""

OUTSIDE = 0.02
"""Of the sampled tokens, the part that may lie outside of what a truncation keeps: ranks of equals vary."""


class PublicationProbe:
    """Has fixed tokens scored around every n-th publication, by the servers and by the trainer.

    Every process must call it: a sharded model computes on all of them.

    Args:
        audit: counts everywhere, judges on the main process.
        ids: the probe, at least two ids.
        score: log-probs of `ids[1:]` by each server; None where no server is asked, off the main process.
    """

    def __init__(
        self,
        audit: PublicationAudit,
        ids: Sequence[int],
        score: Callable[[Sequence[int]], Sequence[LogProbs]] | None,
    ) -> None:
        self._audit = audit
        self._ids = tuple(ids)
        self._score = score
        self._first_head: torch.Tensor | None = None
        self._begun = False

    @contextmanager
    def around(self, model: Model, version: int, *, asleep: bool = False) -> Iterator[None]:
        """Look before and after what is done while open, if it is one to look at.

        Args:
            model: without wrappers of data parallelism.
            version: updates that its weights have received.
            asleep: the servers cannot answer before it.
        """
        if not self._begun:
            self._begun = True
            self._first_head = _tied_head(model)
        if not self._audit.due():
            yield
            return
        before = [] if self._score is None or asleep else self._score(self._ids)
        yield
        after = [] if self._score is None else self._score(self._ids)
        ours = trainer_scores(model, self._ids, self._first_head)
        if PartialState().is_main_process:
            self._audit.look(version, before or after, after, ours)


def trainer_scores(model: Model, ids: Sequence[int], first_head: torch.Tensor | None = None) -> TrainerScores:
    """Log-probs of `ids[1:]` by a model as it is, without its adapters, and with another head."""
    with plain_forward(model):
        present, hidden = _score(model, ids)
        without = None
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                without, _ = _score(model, ids)
        head = None
        if first_head is not None and hidden is not None:
            logits = torch.nn.functional.linear(hidden.cpu().float(), first_head.float())
            head = _chosen(logits, ids)
    return TrainerScores(present, without, head)


def causes_of_gap(
    model: Model,
    ids: torch.Tensor,
    sampled: torch.Tensor,
    log_probs: torch.Tensor,
    *,
    temperature: float,
    trainer: torch.Tensor,
) -> dict[SamplerCause, float]:
    """Mean |trainer - sampler| of one row under each hypothesis, in nats per sampled token.

    Args:
        model: without wrappers, not sharded.
        ids: the row without padding, shape (T,).
        sampled: True where the policy sampled, shape (T,).
        log_probs: the sampler's, zero elsewhere, shape (T,).
        temperature: that was sampled with.
        trainer: the trainer's own, shape (T,).
    """
    ids, sampled = ids[:LONGEST], sampled[:LONGEST].clone()
    sampled[0] = False
    said = log_probs[:LONGEST][sampled].float().cpu()
    own = trainer[:LONGEST][sampled].float().cpu()
    chosen, places = ids[sampled].cpu(), sampled[1:].cpu()
    found = {SamplerCause.UNKNOWN: _mean_gap(own, said)}

    def gap(scores: torch.Tensor) -> float:
        return _mean_gap(scores.gather(-1, chosen[:, None]).squeeze(-1), said)

    def scores(scale: float, dtype: torch.dtype | None = None) -> torch.Tensor:
        return (_logits(model, ids, dtype)[:-1][places] / scale).log_softmax(-1)

    with plain_forward(model):
        present = scores(temperature)
        if temperature != 1.0:
            found[SamplerCause.TEMPERATURE] = gap(scores(1.0))
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                found[SamplerCause.ADAPTER] = gap(scores(temperature))
        found[SamplerCause.PRECISION] = min(
            gap(scores(temperature, dtype)) for dtype in (torch.float32, torch.bfloat16)
        )
    first = slice(TRUNCATED_TOKENS)
    whole = _mean_gap(own[first], said[first])
    if whole:
        cut = truncated_gap(present[first], chosen[first], said[first])
        found[SamplerCause.TRUNCATION] = cut / whole * found[SamplerCause.UNKNOWN]
    return found


def truncated_gap(scores: torch.Tensor, chosen: torch.Tensor, said: torch.Tensor) -> float:
    """Mean |trainer - sampler| if the sampler drew from a part of the trainer's distribution, the best guess.

    What is kept of a distribution is scaled up to 1: a token's log-prob grows by -log of the share kept.

    Args:
        scores: log-probs of all tokens, shape (N, V); chosen, said: of those sampled, shape (N,).
    """
    if not len(said):
        return 0.0
    ordered = scores.sort(-1, descending=True).values
    mass = ordered.exp().cumsum(-1)
    own = scores.gather(-1, chosen[:, None])
    rank = (scores > own).sum(-1)
    implied = (own.squeeze(-1) - said).exp().clamp(max=1.0)
    counts = [torch.full_like(rank, k) for k in TOP_K if k <= scores.size(-1)]
    for share in (*TOP_P, *implied.quantile(torch.tensor((0.0, 0.05, 0.2))).tolist()):
        counts.append((mass < share).sum(-1) + 1)
    counts += [(ordered >= ordered[:, :1] + math.log(part)).sum(-1) for part in MIN_P]
    gaps = [math.inf]
    for count in counts:
        kept = mass.gather(-1, (count - 1).clamp(max=scores.size(-1) - 1)[:, None])
        if (rank >= count).float().mean() <= OUTSIDE:
            gaps.append(_mean_gap((own - kept.log()).squeeze(-1), said))
    return min(gaps)


def _mean_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    difference = (one - other).abs()
    difference = difference[~difference.isnan()]
    return difference.mean().item() if difference.numel() else 0.0


@contextmanager
def _computed_in(model: Model, dtype: torch.dtype) -> Iterator[None]:
    """Compute in this type, whatever accelerate and `precision.low_residual` have put around the model."""
    embedding = model.get_input_embeddings()
    forward, hooks = model.__dict__.pop("forward", None), embedding._forward_hooks.copy()
    embedding._forward_hooks.clear()
    device = next(model.parameters()).device.type
    try:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            yield
    finally:
        embedding._forward_hooks.update(hooks)
        if forward is not None:
            model.forward = forward


@contextmanager
def plain_forward(model: Model) -> Iterator[None]:
    """Rows as they are: no gradient, no dropout, and not the asynchronous trainer's attention over trees."""
    text = model.config.get_text_config()
    configs = {id(config): config for config in (model.config, text)}.values()
    attention = [config._attn_implementation for config in configs]
    # sdpa has no softcap, and leaves sinks out without a word.
    special = getattr(text, "attn_logit_softcapping", None) or any(
        name.endswith("sinks") for name, _ in model.named_parameters()
    )
    for config in configs:
        if config._attn_implementation == TREE_ATTENTION:
            config._attn_implementation = "eager" if special else "sdpa"
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for config, name in zip(configs, attention, strict=True):
            config._attn_implementation = name


def _logits(model: Model, ids: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Shape (T, V), float32, on the CPU; computed as the trainer does, or in another type."""
    with nullcontext() if dtype is None else _computed_in(model, dtype):
        logits: torch.Tensor = model(input_ids=ids[None]).logits[0]
    return logits.cpu().float()


def _score(model: Model, ids: Sequence[int]) -> tuple[LogProbs, torch.Tensor | None]:
    row = torch.tensor([list(ids)], device=model.device)
    output = model(input_ids=row, output_hidden_states=True)
    hidden = output.hidden_states[-1][0] if output.hidden_states else None
    return _chosen(output.logits[0].cpu().float(), ids), hidden


def _chosen(logits: torch.Tensor, ids: Sequence[int]) -> LogProbs:
    index = torch.tensor(list(ids[1:]))[:, None]
    chosen: list[float] = logits[:-1].log_softmax(-1).gather(-1, index).squeeze(-1).tolist()
    return chosen


def _tied_head(model: Model) -> torch.Tensor | None:
    """A copy of a head that is the embedding, on the CPU; None where it is its own or is not trained."""
    if isinstance(model, PeftModel):
        return None
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None or head.weight is not embedding.weight:
        return None
    return whole_tensor(head.weight).to("cpu", copy=True)
