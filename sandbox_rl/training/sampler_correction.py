"""The correction for a sampler whose log-probs are not quite the trainer's, without a forward pass for it.

TRL 1.16 computes the trainer's log-probs of sampled tokens right after sampling, for the ratio to the
sampler's and as the old policy's. With one update per generation the weights are still the same when the
loss is computed, whose forward pass has these log-probs anyway: with activation checkpointing, that saves a
fifth of the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from sandbox_rl.training.views import LossArgs, LossInputs, LossView, RhythmArgs

__all__ = ["LateCorrection", "correct", "log_ratios", "mismatch", "one_update_per_generation", "worst_row"]


class LateCorrection:
    """Corrects inside the loss, where TRL would have corrected after sampling.

    Args:
        trainer: whose policy is sampled elsewhere, as TRL's settings say how to correct for it.
    """

    def __init__(self, trainer: LossView) -> None:
        self._trainer = trainer
        self.active = trainer.vllm_importance_sampling_correction and one_update_per_generation(trainer.args)
        """Whether it does; with several updates per generation it is left to TRL."""

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """While TRL scores what was sampled: it does not correct there."""
        if not self.active:
            yield
            return
        self._trainer.vllm_importance_sampling_correction = False
        try:
            yield
        finally:
            self._trainer.vllm_importance_sampling_correction = True

    def correct(self, inputs: LossInputs, log_probs: torch.Tensor) -> None:
        """Add what TRL's loss is about to read, in place."""
        correct(inputs, log_probs, self._trainer.args)


def one_update_per_generation(args: RhythmArgs) -> bool:
    """Whether weights do not change between sampling and the last loss of the samples, as TRL judges it."""
    generation: int = args.steps_per_generation * args.num_iterations
    return int(args.gradient_accumulation_steps) % generation == 0


def correct(inputs: LossInputs, log_probs: torch.Tensor, args: LossArgs) -> None:
    """Add what TRL would have computed after sampling, in place.

    The ratio trainer / sampler is per token (B, C) or per sequence (B, 1), cut off or set to zero outside of
    the bounds, as `vllm_importance_sampling_mode` says (https://fengyao.notion.site/off-policy-rl). A
    sampler's log-prob that is not known (NaN) counts as equal.

    Args:
        inputs: of TRL's `compute_loss`, with `sampling_per_token_logps` (B, C).
        log_probs: the trainer's, (B, C), without gradient.
        args: TRL's settings.
    """
    mode = args.vllm_importance_sampling_mode
    low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    difference = (log_probs - inputs["sampling_per_token_logps"]) * _sampled(inputs)
    difference = torch.nan_to_num(difference, nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        ratio = ratio.clamp(min=low, max=high)
    elif mode.endswith("mask"):
        ratio = ratio.masked_fill(ratio != ratio.clamp(min=low, max=high), 0.0)
    else:
        raise ValueError(
            f"vllm_importance_sampling_mode {mode!r}, expected token_ or sequence_ truncate or mask"
        )
    inputs["importance_sampling_ratio"] = ratio
    inputs["old_per_token_logps"] = log_probs


def log_ratios(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """log(trainer / sampler) of the sampled tokens, shape (N,); None where either is not known.

    Args:
        inputs: of TRL's `compute_loss`; tensors (B, C), only policy tokens count.
    """
    sampler, trainer = inputs.get("sampling_per_token_logps"), inputs.get("old_per_token_logps")
    if sampler is None or trainer is None:
        return None
    difference: torch.Tensor = (trainer - sampler)[_sampled(inputs).bool()].float()
    return difference[~difference.isnan()]


def worst_row(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The row whose log-probs differ most on average, without padding.

    Args:
        inputs: as for `log_ratios`, with the prompt.

    Returns:
        `ids`, `sampled` (True where the policy sampled), the sampler's `log_probs` and the `trainer`'s,
        shape (T,) each, zero where there is none.
    """
    sampler, trainer = inputs.get("sampling_per_token_logps"), inputs.get("old_per_token_logps")
    if sampler is None or trainer is None:
        return None
    sampled = _sampled(inputs).bool()
    gaps = ((trainer - sampler).abs().nan_to_num(0.0) * sampled).sum(-1) / sampled.sum(-1).clamp(min=1)
    row = int(gaps.argmax())
    before, within = inputs["prompt_mask"][row].bool(), inputs["completion_mask"][row].bool()
    prompt = inputs["prompt_ids"][row][before]
    nothing = torch.zeros_like(prompt, dtype=torch.float32)
    return {
        "ids": torch.cat([prompt, inputs["completion_ids"][row][within]]),
        "sampled": torch.cat([nothing.bool(), sampled[row][within]]),
        "log_probs": torch.cat([nothing, sampler[row][within].float()]),
        "trainer": torch.cat([nothing, trainer[row][within].float()]),
    }


def mismatch(ratios: torch.Tensor) -> dict[str, float]:
    """How far the trainer's log-probs of sampled tokens lie from the sampler's, in nats.

    Returns:
        `mismatch/mean` and `mismatch/max` of the absolute difference, and `mismatch/kl`, the estimate
        mean(r - 1 - log r) of KL(sampler || trainer) with r = trainer / sampler
        (k3 in http://joschu.net/blog/kl-approx.html); nothing without a token.
    """
    if ratios.numel() == 0:
        return {}
    return {
        "mismatch/mean": ratios.abs().mean().item(),
        "mismatch/max": ratios.abs().max().item(),
        "mismatch/kl": (ratios.exp() - 1 - ratios).mean().item(),
    }


def _sampled(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    mask: torch.Tensor = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    return mask
