"""TRL's GRPO trainer for long rows and served policies. Loss and gradients stay TRL's own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from trl import GRPOTrainer

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.audit.sampler import SamplerCause
from sandbox_rl.errors import ConfigError
from sandbox_rl.training.log_probs import align_rows, float32_log_probs
from sandbox_rl.training.micro_batches import (
    agreed_lengths,
    coupling,
    lengths_of,
    loss_share,
    part_of,
    plan_parts,
)
from sandbox_rl.training.precision import settle_precision
from sandbox_rl.training.probe import PublicationProbe, causes_of_gap
from sandbox_rl.training.publication.sync import TrainerSync, WeightSync
from sandbox_rl.training.reward_metrics import correct_reward_metrics, outcomes_of
from sandbox_rl.training.sampler_correction import (
    correct,
    log_ratios,
    mismatch,
    one_update_per_generation,
    worst_row,
)
from sandbox_rl.training.saving import AgreedSaves

__all__ = ["SandboxGRPOTrainer", "trim_padding"]

_PER_COMPLETION_TOKEN = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)


class SandboxGRPOTrainer(AgreedSaves, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` for long rows: float32 log-probs, little padding, bounded memory.

    TRL pads every row to the longest of its generation batch, so one long episode makes all
    micro-batches long. Trimming, moving rows to the left (`log_probs`) and computing a micro-batch in parts
    (`micro_batches`) leave loss and gradients as they are.

    Args:
        micro_batch_tokens: tokens computed at once, padding included; a single longer row is computed alone.
            None: the whole micro-batch.
        weight_sync: where the policy is sampled by servers: TRL then calls its `sync_weights` before
            rollouts, and corrects for the servers' log-probs differing from its own
            (`vllm_importance_sampling_mode`), as with its own vLLM modes.
        audit: looks at what the loss is computed from; its metrics are logged with each step's.
        probe: makes the probe of publications for this trainer, where servers sample.

    Raises:
        ConfigError: parts are asked for with a loss that cannot be taken apart.
    """

    def __init__(
        self,
        *args: Any,
        weight_sync: WeightSync | None = None,
        micro_batch_tokens: int | None = None,
        audit: RunAudit | None = None,
        probe: PublicationProbe | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.audit = audit
        if audit is not None:
            self.add_callback(audit.updates)
        settle_precision(self)
        if micro_batch_tokens is not None:
            self._check_parts(micro_batch_tokens)
        self._micro_batch_tokens = micro_batch_tokens
        align_rows(
            float32_log_probs(self.model, temperature=self.temperature), token_budget=micro_batch_tokens
        )
        if self.ref_model is not None:
            reference = self.accelerator.unwrap_model(self.ref_model)
            align_rows(
                float32_log_probs(reference, temperature=self.temperature, outputs=("log_probs",)),
                token_budget=micro_batch_tokens,
            )
        self._weight_sync = weight_sync
        self._corrects_late = False
        self._outcomes: torch.Tensor | None = None
        self._in_loss: dict[str, Any] | None = None
        if weight_sync is not None:
            # Set afterwards: TRL's constructor would start or look for an engine of its own. From here
            # on it reads exactly these three (pinned by tests/smoke/test_trl_contract.py).
            self.use_vllm = True
            self.vllm_generation = TrainerSync(
                weight_sync,
                lambda: self.accelerator.unwrap_model(self.model),
                lambda: int(self.state.global_step),
                probe,
            )
            self._last_loaded_step = -1
            self._corrects_late = self.vllm_importance_sampling_correction and one_update_per_generation(
                self.args
            )
            self.rollout_func: Any = self._roll_out_served(kwargs.get("rollout_func"))

    def sync_policy(self) -> None:
        """Bring the servers up to date before rollouts that TRL does not ask for, as in evaluation."""
        sync = self._weight_sync
        if sync is not None and (sync.asleep or self._last_loaded_step != self.state.global_step):
            self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step with what the audits saw of it."""
        if self.audit is not None and "loss" in logs:
            logs |= self.audit.take(int(self.state.global_step))
        super().log(logs, start_time)

    def _calculate_rewards(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mine = outcomes_of(inputs)
        self._outcomes = None
        if mine is not None:
            found = torch.tensor(mine, dtype=torch.float32, device=self.accelerator.device)
            self._outcomes = self.accelerator.gather(found)
        return super()._calculate_rewards(inputs, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = self._scored(inputs)
        if self._outcomes is not None and self.model.training:
            (name,) = self.reward_func_names
            correct_reward_metrics(
                self._metrics["train"],
                self._logs["rewards"][name],
                self._outcomes,
                name=name,
                group_size=self.num_generations,
            )
        return output

    def _scored(self, inputs: Any) -> Any:
        if not self._corrects_late:
            return super()._generate_and_score_completions(inputs)
        self.vllm_importance_sampling_correction = False  # here only: the loss has it in hand
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.vllm_importance_sampling_correction = True

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        inputs, log_probs = self._in_loss, found[0].detach()
        if inputs is None:
            return found
        # The loss has asked, which reads the rest of its inputs afterwards.
        if self._corrects_late:
            correct(inputs, log_probs, self.args)
        elif "old_per_token_logps" in inputs:
            self._compare_old(inputs, log_probs)
        else:
            inputs["old_per_token_logps"] = log_probs  # what TRL takes in their absence
        return found

    def _roll_out_served(self, rollouts: Any) -> Any:
        """The rollouts, with servers awake while they last (`policy.sleep`)."""

        def roll_out(prompts: Any, trainer: SandboxGRPOTrainer) -> Any:
            self.sync_policy()  # TRL has done so, but for a second batch of the same step
            rows = rollouts(prompts, trainer)
            assert self._weight_sync is not None
            self._weight_sync.rest()
            return rows

        return roll_out

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a micro-batch; of parts of it, all but the last one's gradient is there already."""
        if self._weight_sync is not None and model.training:
            self._weight_sync.rest()  # an evaluation may have woken the servers
        if self.audit is not None and model.training:
            self.audit.samples.in_loss(inputs, int(self.state.global_step))
        # FSDP2 would keep whole gradients until they are exchanged: there each part exchanges its own.
        held = nullcontext if self.accelerator.is_fsdp2 else partial(self.accelerator.no_sync, model)
        parts = self._parts(inputs) if model.training else [inputs]
        ratios: list[torch.Tensor] = []
        total: Any = 0.0
        for part in parts[:-1]:
            with held():
                loss = self._part_loss(model, inputs, part, num_items_in_batch, ratios)
                self.accelerator.backward(loss)
            total = total + loss.detach()
        total = total + self._part_loss(model, inputs, parts[-1], num_items_in_batch, ratios)
        if ratios and model.training:
            for name, value in mismatch(torch.cat(ratios)).items():
                self._metrics["train"][name].append(value)
        return total

    def _check_parts(self, tokens: int) -> None:
        coupled = "router_aux_loss_coef" if self.aux_loss_enabled else coupling(self.args)
        if coupled is not None:
            reason = f"grpo.{coupled}, which takes the rows of a micro-batch together"
        elif self.is_deepspeed_enabled:
            reason = "DeepSpeed, which would step after each part"
        else:
            return
        raise ConfigError(
            f"update.micro_batch_tokens: {tokens}, expected none with {reason}; "
            "lower grpo.per_device_train_batch_size instead"
        )

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        if self._micro_batch_tokens is None:
            return [inputs]
        lengths = lengths_of(inputs)
        bounds = agreed_lengths(lengths, inputs["completion_mask"].device)
        plan = plan_parts(lengths, self._micro_batch_tokens, bounds=bounds)
        return [inputs] if len(plan) == 1 else [part_of(inputs, rows) for rows in plan]

    def _part_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        part: dict[str, Any],
        items: Any,
        ratios: list[torch.Tensor],
    ) -> Any:
        """TRL's loss of `part`, as its share of that of `inputs`; adds to `ratios` where servers sample."""
        trimmed = trim_padding(part)
        self._in_loss = trimmed
        try:
            loss = super().compute_loss(model, trimmed, num_items_in_batch=items)
        finally:
            self._in_loss = None
        if (found := log_ratios(trimmed)) is not None:
            ratios.append(found)
            self._compare_sampler(trimmed, found)
        return loss if part is inputs else loss_share(self.loss_type, inputs, part) * loss

    def _compare_old(self, inputs: dict[str, Any], log_probs: torch.Tensor) -> None:
        """Where no update came between, old log-probs are the present ones but for rounding."""
        step = int(self.state.global_step)
        if self.audit is None or not self.audit.samples.fresh(step):
            return
        present = {**inputs, "sampling_per_token_logps": log_probs}
        if (found := log_ratios(present)) is not None and found.numel():
            self.audit.sampler.look_old(found.abs().mean().item(), step)

    def _compare_sampler(self, inputs: dict[str, Any], ratios: torch.Tensor) -> None:
        if self.audit is None or not ratios.numel() or not self.model.training:
            return

        def gaps() -> dict[SamplerCause, float]:
            row = worst_row(inputs)
            if row is None or self.accelerator.is_fsdp2 or self.is_deepspeed_enabled:
                return {}  # a forward pass of one process alone would wait for the others
            model = self.accelerator.unwrap_model(self.model)
            return causes_of_gap(model, **row, temperature=self.temperature)

        self.audit.sampler.look(ratios.abs().mean().item(), int(self.state.global_step), gaps)


def trim_padding(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` of TRL's `compute_loss` without all-padding columns.

    Prompts (B, P) are padded on the left, everything per completion token (B, C) on the right;
    tensors of other widths, such as sequence-level ratios (B, 1), are left alone.
    """
    width = inputs["completion_mask"].size(1)
    completion = max(1, int(inputs["completion_mask"].sum(-1).max()))
    prompt = max(1, int(inputs["prompt_mask"].sum(-1).max()))
    trimmed = dict(inputs)
    for key in ("prompt_ids", "prompt_mask"):
        trimmed[key] = inputs[key][:, -prompt:]
    for key in _PER_COMPLETION_TOKEN:
        value = inputs.get(key)
        if torch.is_tensor(value) and value.dim() == 2 and value.size(1) == width:
            trimmed[key] = value[:, :completion]
    return trimmed
