"""The groups of one update as micro-batches: rows of packed tokens, as many on each rank.

TRL's asynchronous loss of them has a bound here on the weight of old tokens. The loss is -min(r A, clip(r) A)
per token, r being the ratio of the trainer's probability to that of the weights that sampled the token,
whichever version that was. For A > 0 the clip bounds what a token weighs; for A < 0 it does not: a token that
has become much likelier since weighs r. Old tokens are where r is large. There it is truncated, as importance
weights are in V-trace (arXiv 1802.01561): the token weighs the bound.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from trl.experimental.async_grpo.async_grpo_trainer import DataCollatorForRollout
from trl.experimental.async_grpo.packing import TreeRow
from trl.trainer.utils import FusedCausalLMOutput

from sandbox_rl.training.samples import FinishedGroup, Sample
from sandbox_rl.training.views import LossInputs

AGE = "age_mean"
"""Key of a micro-batch: mean age of the update's tokens, in updates; TRL's loss does not read it."""

OLDEST_SHARE = 8
"""Ages from which on there is one share for all."""


def micro_batches(groups: Sequence[FinishedGroup], *, ranks: int, token_budget: int) -> list[list[TreeRow]]:
    """Pack groups into rows of at most `token_budget` tokens; a micro-batch has one row for each rank.

    A sample goes where its group is already, since what it shares with a row is computed once.

    Raises:
        ValueError: a sample is longer than a row.
    """
    rows: list[TreeRow] = []
    for group in groups:
        for sample in group.samples:
            row = _row_for(sample, rows, token_budget)
            row.add(sample.as_row())
    while len(rows) % ranks:  # a rank without a row would leave the others waiting
        _split(rows)
    rows.sort(key=lambda row: row.load, reverse=True)  # rows of a micro-batch take about as long
    return [rows[i : i + ranks] for i in range(0, len(rows), ranks)]


def tensors_of(
    packed: Sequence[Sequence[TreeRow]],
    samples: Iterable[Sample],
    step: int,
    *,
    pad_token_id: int,
    metrics: Mapping[str, list[Any]] | None = None,
    token_budget: int = 0,
) -> tuple[dict[str, torch.Tensor], ...]:
    """Micro-batches as TRL's loss takes them, each with the mean age of all the update's tokens (`AGE`).

    Args:
        metrics: a sink, name → values, of what TRL measures of rows; `token_budget` matters to these alone.
    """
    ranks = len(packed[0])
    sink = defaultdict(list) if metrics is None else metrics
    collate = DataCollatorForRollout(pad_token_id, ranks, metrics=sink, token_budget=token_budget)
    ages = np.concatenate([sample.ages(step) for sample in samples])
    age = torch.full((ranks,), float(ages.mean()))
    return tuple({**collate.torch_call([batch]), AGE: age} for batch in packed)


def _row_for(sample: Sample, rows: list[TreeRow], token_budget: int) -> TreeRow:
    if len(sample.input_ids) > token_budget:
        raise ValueError(
            f"a sample of group {sample.group} has {len(sample.input_ids)} tokens, more than the row's "
            f"{token_budget}"
        )
    fitting = [row for row in rows if row.fits(sample.as_row(), token_budget)]
    home = [row for row in fitting if sample.group in row.groups]
    if home or fitting:
        return min(home or fitting, key=lambda row: row.load)
    rows.append(TreeRow())
    return rows[-1]


def _split(rows: list[TreeRow]) -> None:
    """Make one row more without changing the loss: it is a sum over tokens."""
    place = max(range(len(rows)), key=lambda i: (len(rows[i].samples), rows[i].trained))
    samples = rows.pop(place).samples
    if len(samples) > 1:
        halves = [samples[: len(samples) // 2], samples[len(samples) // 2 :]]
    else:
        halves = [[part] for part in _halves(samples[0])]
    for half in halves:
        rows.append(TreeRow())
        for sample in half:
            rows[-1].add(sample)


def _halves(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """One sample twice, its first trained tokens in one and the others in the other."""
    mask = sample["completion_mask"]
    first, second = (sample | {"part": sample.get("part", "") + half} for half in "ab")
    if mask.sum() < 2:
        return [first, second | {"advantage": 0.0}]
    half = int(mask.sum()) // 2
    middle = np.cumsum(mask) > half
    second["first"] = sample.get("first", 0) + half
    return [first | {"completion_mask": mask * ~middle}, second | {"completion_mask": mask * middle}]


def samples_of(packed: Sequence[Sequence[TreeRow]]) -> tuple[tuple[tuple[tuple[str, int], ...], ...], ...]:
    """Of each row of each micro-batch: episode of each sample, and the first of its sampled tokens there."""
    return tuple(
        tuple(tuple((s["episode"], s.get("first", 0)) for s in row.samples) for row in batch)
        for batch in packed
    )


def packed_as(
    rows: Iterable[Iterable[tuple[int, int, str]]], samples: Mapping[tuple[int, int], Sample], *, ranks: int
) -> list[list[TreeRow]]:
    """Micro-batches as they were packed before, whatever `micro_batches` would do today.

    Args:
        rows: parts of samples (`compositions.Part`), by rows.
        samples: by group and index.

    Raises:
        KeyError: a sample is not there.
    """
    packed = []
    for row in rows:
        packed.append(TreeRow())
        for group, index, part in row:
            sample = samples[group, index].as_row()
            for half in part:
                sample = _halves(sample)["ab".index(half)]
            packed[-1].add(sample)
    return [packed[i : i + ranks] for i in range(0, len(packed), ranks)]


def age_metrics(samples: Sequence[Sample], step: int) -> dict[str, float | tuple[float, float]]:
    """How old the trained tokens of an update from `step` are, in updates.

    Returns:
        `off_policy/age_mean` and the shares `off_policy/age_0`, `_1` … `_8_up` as (sum, tokens), which TRL
        reduces to a rate over the tokens of all updates logged together; `off_policy/age_max`; the share of
        tokens in turns in the middle of which the weights changed, `off_policy/divided_turns`, and of those
        in turns of which the server did not say whether and where, `off_policy/unlabelled_turns`: their age
        is what it can be at most.
    """
    ages = np.concatenate([sample.ages(step) for sample in samples])
    total = float(len(ages))
    found: dict[str, float | tuple[float, float]] = {
        "off_policy/age_mean": (float(ages.sum()), total),
        "off_policy/age_max": float(ages.max()),
        "off_policy/divided_turns": (float(sum(sample.divided for sample in samples)), total),
        "off_policy/unlabelled_turns": (float(sum(sample.unlabelled for sample in samples)), total),
        f"off_policy/age_{OLDEST_SHARE}_up": (float((ages >= OLDEST_SHARE).sum()), total),
    }
    return found | {
        f"off_policy/age_{age}": (float((ages == age).sum()), total) for age in range(OLDEST_SHARE)
    }


MAX_RATIO = 3.0
"""What the ratio of a token with a negative advantage is truncated at."""


def truncated(log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Log-probs whose ratio is at most `MAX_RATIO` where the advantage is negative, shape (M,).

    The gradient with respect to `log_probs` is kept: a truncated token weighs MAX_RATIO * A.
    """
    excess = (log_probs - old_log_probs - math.log(MAX_RATIO)).detach()
    return log_probs - torch.where((excess > 0) & (advantages < 0), excess, 0.0)


def select_terms(
    model: Callable[..., FusedCausalLMOutput],
    inputs: Mapping[str, torch.Tensor],
    seen: Callable[[torch.Tensor, torch.Tensor], object] = lambda log_probs, bounded: None,
) -> tuple[Callable[..., FusedCausalLMOutput], LossInputs]:
    """A model and inputs for TRL's `compute_loss` with truncated ratios.

    In a packed row one position can serve several samples, each with its own old log-prob: the terms of the
    loss are selected here, and TRL is given indices into them.

    Args:
        seen: is shown the terms' log-probs as the model gives them and as TRL reads them, (M,) each.
    """
    selected = inputs["token_index"] >= 0
    places = inputs["token_index"][selected]
    old, advantages = inputs["old_log_probs"][selected], inputs["advantages"][selected]

    def forward(**kwargs: Any) -> FusedCausalLMOutput:
        outputs = model(**kwargs)
        terms = outputs.log_probs.flatten()[places]
        outputs.log_probs = truncated(terms, old, advantages)
        seen(terms, outputs.log_probs)
        outputs.entropy = outputs.entropy.flatten()[places]
        return outputs

    index = torch.full_like(inputs["token_index"], -1)
    index[selected] = torch.arange(len(places), device=index.device, dtype=index.dtype)
    return forward, dict(inputs) | {"token_index": index}
