"""A bound on the weight of old tokens in TRL's asynchronous loss.

The loss is -min(r A, clip(r) A) per token, r being the ratio of the trainer's probability to that of the
weights that sampled the token, whichever version that was. For A > 0 the clip bounds what a token weighs; for
A < 0 it does not: a token that has become much likelier since weighs r. Old tokens are where r is large.
There it is truncated, as importance weights are in V-trace (arXiv 1802.01561): the token weighs the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from trl.trainer.utils import FusedCausalLMOutput

from sandbox_rl.training.views import LossInputs

__all__ = ["MAX_RATIO", "select_terms", "truncated"]

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
    seen: Callable[[torch.Tensor], object] = lambda log_probs: None,
) -> tuple[Callable[..., FusedCausalLMOutput], LossInputs]:
    """A model and inputs for TRL's `compute_loss` with truncated ratios.

    In a packed row one position can serve several samples, each with its own old log-prob: the terms of the
    loss are selected here, and TRL is given indices into them.

    Args:
        seen: is shown the terms' log-probs as the model gives them, (M,).
    """
    selected = inputs["token_index"] >= 0
    places = inputs["token_index"][selected]
    old, advantages = inputs["old_log_probs"][selected], inputs["advantages"][selected]

    def forward(**kwargs: Any) -> FusedCausalLMOutput:
        outputs = model(**kwargs)
        terms = outputs.log_probs.flatten()[places]
        seen(terms)
        outputs.log_probs = truncated(terms, old, advantages)
        outputs.entropy = outputs.entropy.flatten()[places]
        return outputs

    index = torch.full_like(inputs["token_index"], -1)
    index[selected] = torch.arange(len(places), device=index.device, dtype=index.dtype)
    return forward, dict(inputs) | {"token_index": index}
