"""Updates whose gradient is NaN or infinite are left out: one bad batch must not spoil the weights.

What such an update was computed from is kept for a look, the run goes on, and after several in a row it ends
with the weights as they were before.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch

from sandbox_rl.errors import InfraFault
from sandbox_rl.training.agreement import everywhere, together

__all__ = ["IN_A_ROW", "SKIPPED", "SkipsNotFinite"]

logger = logging.getLogger(__name__)

IN_A_ROW = 3
"""Updates left out after which a run ends: the cause does not go away by itself."""
SKIPPED = "skipped"
"""Beside the checkpoints: the inputs of updates that were left out, a file for each process."""


class SkipsNotFinite:
    """Mixed into a trainer of transformers, before it. Under DeepSpeed the engine's own rules hold."""

    _skipped_in_a_row = 0
    update_left_out = False
    """Whether the last update was."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._computed_from: list[Any] = []
        super().__init__(*args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = super()
        inputs = base._prepare_inputs(*args, **kwargs)
        trainer: Any = self
        if trainer.model.training:
            self._computed_from.append(inputs)
        return inputs

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The norm that is logged; transformers asks for it right before the optimizer's step.

        Raises:
            InfraFault: on every process, once `IN_A_ROW` updates were left out.
        """
        base: Any = super()
        trainer: Any = self
        norm = base._get_grad_norm(*args, **kwargs)
        computed_from, self._computed_from = self._computed_from, []
        self.update_left_out = not (
            norm is None or trainer.is_deepspeed_enabled or math.isfinite(float(norm))
        )
        if not self.update_left_out:
            self._skipped_in_a_row = 0
            return norm
        # The norm is over all processes, so that all come here.
        self._skipped_in_a_row += 1
        for parameter in trainer.model.parameters():
            parameter.grad = None  # optimizers leave such a parameter, and what they know of it, as it is
        step, rank = int(trainer.state.global_step), trainer.accelerator.process_index
        kept = Path(trainer.args.output_dir) / SKIPPED / f"update-{step:06d}-{rank}.pt"
        logger.warning(
            "step %d: the gradient is %s: the update is left out; its inputs are in %s",
            step,
            float(norm),
            kept,
        )
        trainer._metrics["train"]["update/left_out"].append(1.0)
        with together():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(computed_from, kept)
        if self._skipped_in_a_row >= IN_A_ROW:
            raise everywhere(
                InfraFault(
                    f"{IN_A_ROW} updates in a row, up to step {step}, had a NaN or infinite gradient; "
                    f"the weights are those before them. Look at {kept.parent} and alarms.jsonl, lower "
                    "grpo.learning_rate, and go on with --resume"
                )
            )
        return norm
