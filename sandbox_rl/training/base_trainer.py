"""What TRL's trainers do our way, both alike: checkpoints, updates that are not finite, what audits see.

**Checkpoints are saved by all processes, or by none.** While a sharded model is saved, exchanges between
processes alternate with writes of one of them. A process that left at its failed write would keep the others
waiting in the next exchange. So a failed write is kept in mind, the exchanges go on, and at the end the
processes agree.

**Updates whose gradient is NaN or infinite are left out**: one bad batch must not spoil the weights. What
such an update was computed from is kept for a look, the run goes on, and after several in a row it ends with
the weights as they were before. Under DeepSpeed the engine's own rules hold.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from transformers import Trainer

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.errors import InfraFault, SandboxRLError, SetupError
from sandbox_rl.training.agreement import any_of, everywhere, together
from sandbox_rl.training.checkpoints import SAVING, is_complete, prune, publish, remove_leftovers
from sandbox_rl.training.precision import settle_precision
from sandbox_rl.training.probe import PublicationProbe
from sandbox_rl.training.publication.base import UnsentWeights, Weights
from sandbox_rl.training.trl_hooks import PolicyHooks
from sandbox_rl.training.views import GradNorm

logger = logging.getLogger(__name__)

IN_A_ROW = 3
"""Updates left out after which a run ends: the cause does not go away by itself."""
SKIPPED = "skipped"
"""Beside the checkpoints: the inputs of updates that were left out, a file for each process."""


class SandboxTrainer(Trainer):  # type: ignore[misc]
    """To be named before TRL's trainer among the bases of one.

    transformers writes, and removes older checkpoints, below `_get_output_dir`. While it saves, that is a
    directory of its own, so that it neither shows what is not whole nor removes anything; see `checkpoints`.
    Its own writes and those of accelerate and DeepSpeed, which use `torch.save`, are kept in mind; that of
    DeepSpeed's file `latest` is not.

    Args:
        weights: what the policy samples with, published before anything is sampled; by default the model
            itself.
        probe: looks at some of the publications, where servers sample.
        audit: looks at what the loss is computed from; its metrics are logged with each step's.
        saved: each writes what else belongs into a checkpoint's directory, on the main process.
    """

    update_left_out = False
    """Whether the last update was."""

    def __init__(
        self,
        *args: Any,
        weights: Weights | None = None,
        probe: PublicationProbe | None = None,
        audit: RunAudit | None = None,
        saved: Sequence[Callable[[Path], None]] = (),
        **kwargs: Any,
    ) -> None:
        self._weights: Weights = UnsentWeights() if weights is None else weights
        self._policy = PolicyHooks(self, self._weights, probe)
        self.audit = audit
        self.saved = saved
        self._computed_from: list[Any] = []
        self._skipped_in_a_row = 0
        self._failed: list[Exception] | None = None  # failed writes of the save that is going on
        super().__init__(*args, **kwargs)
        if audit is not None:
            self.add_callback(audit.updates)
        settle_precision(self)

    def sync_policy(self) -> None:
        """Have the policy sample with the weights as they are now, also where TRL does not ask for it."""
        self._policy.bring_up_to_date()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step with what the audits saw of it."""
        if self.audit is not None and "loss" in logs:
            logs |= self.audit.take(int(self.state.global_step))
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As transformers does, but seen once it is whole and on the disk; older ones are removed after that.

        Every process must call it. A step that has a complete checkpoint keeps that.

        Raises:
            SetupError: on every process, when one of them could not write. Older checkpoints are as before.
        """
        directory, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        partial, main = directory / SAVING / name, self.accelerator.is_main_process
        if any_of(main and is_complete(directory / name)):
            return
        try:
            with together():
                if main:
                    remove_leftovers(directory)
            with together():
                partial.mkdir(parents=True, exist_ok=True)
            with together(), self._writing():
                super()._save_checkpoint(*args, **kwargs)
            with together():
                if main:
                    for save in self.saved:
                        save(partial)
                    publish(partial, directory / name)
        finally:
            if main:
                shutil.rmtree(directory / SAVING, ignore_errors=True)
        if main:
            prune(directory, self.args.save_total_limit)

    def _get_output_dir(self, *args: Any, **kwargs: Any) -> str:
        directory: str = super()._get_output_dir(*args, **kwargs)
        return directory if self._failed is None else str(Path(directory) / SAVING)

    def keep_last_update(self) -> None:
        """Save what the last update left, if that is not saved yet, for a run that ends on a fault.

        Every process must call it. Where an update holds several generations, those that it began with are
        counted already: nothing is saved then, and the run goes on from the checkpoint before.
        """
        args, step = self.args, int(self.state.global_step)
        if step == 0 or not self._is_border(step):
            return
        try:
            self._save_checkpoint(self.model, None)
            self.callback_handler.on_save(args, self.state, self.control)
        except SandboxRLError as error:  # the fault that ends the run is the one to be told
            logger.warning("step %d: no checkpoint could be kept: %s", step, error)

    def _is_border(self, step: int) -> bool:
        """Whether nothing that was sampled is left unused, or used in part, after so many updates."""
        return True

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Written by the first process, before all exchange something."""
        self._keeping(super().create_model_card)(*args, **kwargs)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        self._keeping(super()._save)(*args, **kwargs)

    def _keeping(self, write: Callable[..., None]) -> Callable[..., None]:
        def kept(*args: Any, **kwargs: Any) -> None:
            try:
                write(*args, **kwargs)
            except Exception as error:
                if self._failed is None:
                    raise
                self._failed.append(error)

        return kept

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep failed writes in mind while open; raises the first of them in the end."""
        original = torch.save
        self._failed = []
        torch.save = self._keeping(original)
        try:
            yield
        except CheckpointException as error:  # no `Exception`; torch has brought it to all processes
            (cause, _), *_ = error.failures.values()
            raise SetupError(f"the checkpoint cannot be written: {cause}") from error
        finally:
            torch.save, failed, self._failed = original, self._failed, None
        if failed:
            raise failed[0]

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_inputs(*args, **kwargs)
        if self.model.training:
            self._computed_from.append(inputs)
        return inputs

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> GradNorm:
        """The norm that is logged; transformers asks for it right before the optimizer's step.

        Raises:
            InfraFault: on every process, once `IN_A_ROW` updates were left out.
        """
        norm: GradNorm = super()._get_grad_norm(*args, **kwargs)
        computed_from, self._computed_from = self._computed_from, []
        self.update_left_out = not (norm is None or self.is_deepspeed_enabled or math.isfinite(float(norm)))
        if not self.update_left_out:
            self._skipped_in_a_row = 0
            return norm
        assert norm is not None, "an update without a norm is not left out"
        # The norm is over all processes, so that all come here.
        self._skipped_in_a_row += 1
        for parameter in self.model.parameters():
            parameter.grad = None  # optimizers leave such a parameter, and what they know of it, as it is
        step, rank = int(self.state.global_step), self.accelerator.process_index
        kept = Path(self.args.output_dir) / SKIPPED / f"update-{step:06d}-{rank}.pt"
        logger.warning(
            "step %d: the gradient is %s: the update is left out; its inputs are in %s",
            step,
            float(norm),
            kept,
        )
        self._metrics["train"]["update/left_out"].append(1.0)
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
