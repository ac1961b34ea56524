"""What the audits are told of each loss, and the mismatch of sampler and trainer that is logged."""

from __future__ import annotations

from collections.abc import Mapping, MutableSequence

import torch

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.audit.sampler import SamplerCause
from sandbox_rl.training.probe import causes_of_gap
from sandbox_rl.training.sampler_correction import log_ratios, mismatch, worst_row
from sandbox_rl.training.views import LossInputs, LossView

__all__ = ["LossWatch"]


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
        row = worst_row(inputs)
        if row is None or trainer.accelerator.is_fsdp2 or trainer.is_deepspeed_enabled:
            return {}  # a forward pass of one process alone would wait for the others
        model = trainer.accelerator.unwrap_model(trainer.model)
        return causes_of_gap(model, **row, temperature=trainer.temperature)
