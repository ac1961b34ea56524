"""TRL's GRPO trainer for long rows and served policies. Loss and gradients stay TRL's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from trl import GRPOTrainer

from sandbox_rl.training.base_trainer import SandboxTrainer
from sandbox_rl.training.callbacks import FieldNames, UpdateClock
from sandbox_rl.training.estimator import correct_reward_metrics, outcomes_of
from sandbox_rl.training.generations import GenerationLedger, Generations
from sandbox_rl.training.log_probs import align_rows, float32_log_probs
from sandbox_rl.training.micro_batches import PartedLoss, sampled_mask
from sandbox_rl.training.sampler_correction import LateCorrection, LossWatch
from sandbox_rl.training.shared_prefixes import plan_inputs, shares_prefixes
from sandbox_rl.training.trained_tokens import TokenRecorder
from sandbox_rl.training.views import GradNorm, LossInputs, PerToken


class SandboxGRPOTrainer(SandboxTrainer, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` for long rows: float32 log-probs, little padding, bounded memory.

    TRL pads every row to the longest of its generation batch, so one long episode makes all
    micro-batches long. Trimming, moving rows to the left (`log_probs`) and computing a micro-batch in parts
    (`micro_batches`) leave loss and gradients as they are.

    Args:
        micro_batch_tokens: tokens computed at once, padding included; a single longer row is computed alone.
            None: the whole micro-batch.
        share_prefixes: whether what rows have in common is computed once, where the model can.
        audit, weights, probe, saved: see `SandboxTrainer`. Where servers sample, TRL corrects for their
            log-probs differing from its own (`vllm_importance_sampling_mode`), as with its own vLLM modes.
        ledger: is told the advantages of what is trained on.
        tokens: sees what the loss makes of each token.
        callbacks: come after these two, so that those that end a run find the update written down.

    Raises:
        ConfigError: parts are asked for with a loss that cannot be divided.
    """

    def __init__(
        self,
        *args: Any,
        micro_batch_tokens: int | None = None,
        share_prefixes: bool = True,
        ledger: GenerationLedger | None = None,
        tokens: TokenRecorder | None = None,
        callbacks: Iterable[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        writing = [one for one in (ledger, tokens) if one is not None]
        super().__init__(*args, callbacks=[*writing, *callbacks], **kwargs)
        self._ledger = ledger
        self._tokens = tokens
        base = float32_log_probs(self.model, temperature=self.temperature)
        share = share_prefixes and shares_prefixes(
            base, low=bool(self.args.bf16), device=self.accelerator.device
        )
        self._parted = PartedLoss(self, micro_batch_tokens, plan_inputs if share else None)
        self._watch = LossWatch(self, self.audit)
        self._policy.install(self)
        self.late = LateCorrection(self)
        clock = UpdateClock(self._policy)
        self.callback_handler.callbacks[:0] = [clock, FieldNames(clock.take)]
        self._in_loss: LossInputs | None = None
        align_rows(base, token_budget=micro_batch_tokens, share_prefixes=share)
        if self.ref_model is not None:
            reference = self.accelerator.unwrap_model(self.ref_model)
            align_rows(
                float32_log_probs(reference, temperature=self.temperature, outputs=("log_probs",)),
                token_budget=micro_batch_tokens,
                share_prefixes=share,
            )

    def _is_border(self, step: int) -> bool:
        generations = Generations.of(self.args)
        return generations.is_border(step) and generations.every >= generations.accumulation

    def compute_loss(
        self,
        model: nn.Module,
        inputs: LossInputs,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss of a micro-batch; of parts of it, all but the last one's gradient is there already."""
        if model.training:
            self._weights.sleep()  # an evaluation may have woken servers whose memory the update needs
        self._watch.begin(inputs)

        def loss_of(part: LossInputs) -> torch.Tensor:
            self._in_loss = part
            try:
                loss: torch.Tensor = super(SandboxGRPOTrainer, self).compute_loss(
                    model, part, num_items_in_batch=num_items_in_batch
                )
            finally:
                self._in_loss = None
            self._watch.part(part)
            return loss

        total = self._parted.total(model, inputs, loss_of)
        self._watch.end(self._metrics["train"])
        return total

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> PerToken:
        found: PerToken = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        inputs, log_probs = self._in_loss, found[0].detach()
        if inputs is None:
            return found
        if self._tokens is not None:
            self._tokens.padded(inputs, found[0])
        # The loss has asked, which reads the rest of its inputs afterwards.
        if self.late.active:
            self.late.correct(inputs, log_probs)
        elif "old_per_token_logps" in inputs:
            self._watch.old_log_probs(inputs, log_probs)
        else:
            inputs["old_per_token_logps"] = log_probs  # what TRL takes in their absence
        return found

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> GradNorm:
        norm = super()._get_grad_norm(*args, **kwargs)
        if self._ledger is not None:
            self._ledger.update(left_out=self.update_left_out)
        return norm

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.late.left_out():
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._ledger is not None and self.model.training:
            counted = (sampled_mask(output).sum(1) > 0).tolist()
            episodes = self._ledger.weighed(output["advantages"].tolist(), counted)
            if self._tokens is not None:
                self._tokens.rolled_out(episodes, output)
        outcomes = outcomes_of(inputs)  # TRL has added the columns of the rollouts
        if outcomes is not None and self.model.training:
            (name,) = self.reward_func_names
            correct_reward_metrics(
                self._metrics["train"],
                self._logs["rewards"][name],
                self.accelerator.gather(outcomes.to(self.accelerator.device)),
                name=name,
                group_size=self.num_generations,
            )
        return output
