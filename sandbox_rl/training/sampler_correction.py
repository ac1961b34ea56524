"""Sampler and trainer whose log-probs are not quite the same: what audits are told of it, and the correction.

TRL 1.16 computes the trainer's log-probs of sampled tokens right after sampling, for the ratio to the
sampler's and as the old policy's. With one update per generation the weights are still the same when the
loss is computed, whose forward pass has these log-probs anyway: with activation checkpointing, that saves a
fifth of the update. So it corrects there, without a forward pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableSequence
from contextlib import contextmanager

import torch

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.audit.sampler import SamplerCause
from sandbox_rl.training.micro_batches import sampled_mask
from sandbox_rl.training.probe import causes_of_gap
from sandbox_rl.training.views import LossInputs, LossView


class LateCorrection:
    """Corrects inside the loss, where TRL would have corrected after sampling.

    Args:
        trainer: whose settings say whether its policy is sampled elsewhere, and how to correct for it.
    """

    def __init__(self, trainer: LossView) -> None:
        self._trainer = trainer
        args = trainer.args
        generation = args.steps_per_generation * args.num_iterations
        self.active = (
            trainer.use_vllm
            and trainer.vllm_importance_sampling_correction
            and args.gradient_accumulation_steps % generation == 0
        )
        """Whether it does: weights do not change between sampling and the last loss of the samples, as TRL
        judges it. With several updates per generation it is left to TRL."""

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
        """Add what TRL would have computed after sampling and its loss is about to read, in place.

        The ratio trainer / sampler is per token (B, C) or per sequence (B, 1), cut off or set to zero outside
        of the bounds, as `vllm_importance_sampling_mode` says (https://fengyao.notion.site/off-policy-rl). A
        sampler's log-prob that is not known (NaN) counts as equal.

        Args:
            inputs: of TRL's `compute_loss`, with `sampling_per_token_logps` (B, C).
            log_probs: the trainer's, (B, C), without gradient.
        """
        args = self._trainer.args
        mode = args.vllm_importance_sampling_mode
        low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        difference = (log_probs - inputs["sampling_per_token_logps"]) * sampled_mask(inputs)
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
    difference: torch.Tensor = (trainer - sampler)[sampled_mask(inputs).bool()].float()
    return difference[~difference.isnan()]


def worst_row(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The row whose log-probs differ most on average, without padding.

    Args:
        inputs: as for `log_ratios`, which knows both log-probs there, with the prompt.

    Returns:
        `ids`, `sampled` (True where the policy sampled), the sampler's `log_probs` and the `trainer`'s,
        shape (T,) each, zero where there is none.
    """
    sampler, trainer = inputs["sampling_per_token_logps"], inputs["old_per_token_logps"]
    sampled = sampled_mask(inputs).bool()
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


class LossWatch:
    """Looks at micro-batches while their loss is computed.

    Args:
        audit: None: nobody looks, and only the mismatch is logged.
    """

    def __init__(self, trainer: LossView, audit: RunAudit | None) -> None:
        self._trainer = trainer
        self._audit = audit
        self._ratios: list[torch.Tensor] = []

    def begin(self, inputs: LossInputs) -> None:
        """A micro-batch, before its loss is computed."""
        self._ratios = []
        if self._audit is not None and self._trainer.model.training:
            self._audit.samples.in_loss(inputs, self._step)

    def old_log_probs(self, inputs: LossInputs, log_probs: torch.Tensor) -> None:
        """Where no update came between, old log-probs are the present ones but for rounding."""
        if self._audit is None or not self._audit.samples.fresh(self._step):
            return
        found = log_ratios({**inputs, "sampling_per_token_logps": log_probs})
        if found is not None and found.numel():
            self._audit.sampler.look_old(found.abs().mean().item(), self._step)

    def part(self, inputs: LossInputs) -> None:
        """A part of the micro-batch whose loss has been computed."""
        found = log_ratios(inputs)
        if found is None:
            return
        self._ratios.append(found)
        if self._audit is not None and found.numel() and self._trainer.model.training:
            gap = found.abs().mean().item()
            self._audit.sampler.look(gap, self._step, lambda: self._causes(inputs))

    def end(self, metrics: Mapping[str, MutableSequence[float]]) -> None:
        """The micro-batch is done: add the mismatch over all of its tokens to TRL's metrics."""
        if self._ratios and self._trainer.model.training:
            for name, value in mismatch(torch.cat(self._ratios)).items():
                metrics[name].append(value)

    @property
    def _step(self) -> int:
        return int(self._trainer.state.global_step)

    def _causes(self, inputs: LossInputs) -> dict[SamplerCause, float]:
        trainer = self._trainer
        if trainer.accelerator.is_fsdp2 or trainer.is_deepspeed_enabled:
            return {}  # a forward pass of one process alone would wait for the others
        model = trainer.accelerator.unwrap_model(trainer.model)
        return causes_of_gap(model, **worst_row(inputs), temperature=trainer.temperature)
