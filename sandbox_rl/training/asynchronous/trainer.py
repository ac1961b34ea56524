"""TRL's asynchronous GRPO trainer with our data, attention, worker and weight transfer; its loss is TRL's."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.ledger import Ledger, SampleEnd, Update
from sandbox_rl.training.agreement import together
from sandbox_rl.training.asynchronous.compositions import CompositionLog
from sandbox_rl.training.asynchronous.progress import Admission, GroupProgress
from sandbox_rl.training.asynchronous.rows import AGE, select_terms
from sandbox_rl.training.asynchronous.source import RolloutSource, Source, UpdateStream
from sandbox_rl.training.base_trainer import SandboxTrainer
from sandbox_rl.training.callbacks import FieldNames, of_async_update
from sandbox_rl.training.log_probs import float32_log_probs
from sandbox_rl.training.trained_tokens import TokenRecorder
from sandbox_rl.training.tree_attention import register_tree_attention
from sandbox_rl.training.tree_check import check_packing
from sandbox_rl.training.trl_hooks import NoTransfer, without_peak_flops
from sandbox_rl.training.views import LossInputs

YOUNG = 1.0
"""Mean age of tokens, in updates, up to which sampled and present log-probs are compared."""


class SandboxAsyncTrainer(SandboxTrainer, AsyncGRPOTrainer):  # type: ignore[misc]
    """`trl.experimental.AsyncGRPOTrainer`; what of it is relied upon is pinned by tests/smoke.

    TRL's trainer takes micro-batches as samples come and drops single ones that are too old. Here an update
    is composed of whole groups (`progress.py`) and computed in as many micro-batches as they need.
    `grpo.gradient_accumulation_steps` says how many rows per rank a usual update has.

    Args:
        at_once: groups that are sampled side by side.
        progress: the groups so far; on the main process.
        ledger: gets a line for each finished update; on the main process.
        tokens: sees what the loss makes of each token.
        stop, stopped: see `UpdateStream`.
        audit, weights, probe: see `SandboxTrainer`.
        compositions: where what updates consist of is written down, on the main process.
        recorded: gives updates that were composed before, instead of the rollout worker; on the main process.
        saved: what checkpoints hold beside the groups; see `SandboxTrainer`.
    """

    def __init__(
        self,
        *,
        args: AsyncGRPOConfig,
        at_once: int,
        progress: GroupProgress | None = None,
        ledger: Ledger | None = None,
        tokens: TokenRecorder | None = None,
        stop: Callable[[], bool] = lambda: False,
        stopped: Callable[[], None] = lambda: None,
        callbacks: Iterable[TrainerCallback] = (),
        compositions: CompositionLog | None = None,
        recorded: Source | None = None,
        saved: Sequence[Callable[[Path], None]] = (),
        **kwargs: Any,
    ) -> None:
        self._compositions = compositions
        self._recorded = recorded
        self._rows_per_update = int(args.gradient_accumulation_steps)
        args = copy.copy(args)
        args.gradient_accumulation_steps = 1  # what the loop of transformers sees: one item is one update
        self.progress = progress or GroupProgress()
        self._ledger = ledger
        self._tokens = tokens
        self._samples: Sequence[tuple[str, int]] = ()
        self._at_once = at_once
        self._border = _Border(self, stop, stopped)
        with without_peak_flops():
            super().__init__(
                args=args,
                saved=(self.progress.save, *saved),
                callbacks=[self._border, *([] if tokens is None else [tokens]), *callbacks],
                weight_transfer=NoTransfer(),
                **kwargs,
            )
        self.callback_handler.callbacks.insert(0, FieldNames(of_async_update))
        register_tree_attention()
        with together():
            check_packing(self.model, low=args.bf16, path=str(kwargs.get("model")))
        float32_log_probs(self.model, temperature=self.temperature)

    def get_train_dataloader(self) -> UpdateStream:
        """One item per update, on every rank."""
        source: Source | None = self._recorded
        if source is None and self.accelerator.is_main_process:
            ranks = self.accelerator.num_processes
            admission = Admission(
                self.progress,
                max_staleness=self.args.max_staleness,
                tokens=self.args.token_budget * self._rows_per_update * ranks,
                at_once=self._at_once,
            )
            source = RolloutSource(
                self.rollout_worker,
                admission,
                step=lambda: int(self.state.global_step),
                version=self._weights.version,
                metrics=self._metrics["train"],
                ranks=ranks,
                token_budget=self.args.token_budget,
                pad_token_id=self.processing_class.pad_token_id,
                stale_after_s=self.args.heartbeat_stale_after_s,
                audit=self.audit,
                log=self._compositions,
            )
        self._rollout_dataset = UpdateStream(
            source, self.accelerator.state, stop=self._border.stop, stopped=self._border.stopped
        )
        return self._rollout_dataset

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One whole update: the loss is the mean over all of its tokens, however they lie in rows."""
        batches = inputs["micro_batches"]
        tokens = [float(batch["global_n_tokens"][0]) for batch in batches]
        losses = []
        for place, batch in enumerate(batches):
            # TRL divides the mean over a micro-batch by this.
            self.current_gradient_accumulation_steps = sum(tokens) / tokens[place]
            if self._tokens is not None:
                self._samples = inputs["samples"][place]
            last = place == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, batch, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: LossInputs,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """TRL's, with a bound on what an old token can weigh."""

        def seen(log_probs: torch.Tensor, bounded: torch.Tensor) -> None:
            if self._tokens is not None:
                segments = inputs["segment_id"][inputs["token_index"] >= 0]
                self._tokens.packed(self._samples, segments, log_probs)
            if self.audit is not None:
                self._look(self.audit, inputs, bounded.detach())

        forward, terms = select_terms(model, inputs, seen)
        loss: torch.Tensor = super().compute_loss(forward, terms, return_outputs, num_items_in_batch)
        return loss

    def _look(self, audit: RunAudit, inputs: LossInputs, log_probs: torch.Tensor) -> None:
        selected = inputs["token_index"] >= 0
        audit.packed.in_loss(inputs["advantages"][selected].float().cpu().numpy())
        # Of tokens that are several updates old the difference is the policy's own change.
        if float(inputs[AGE][0]) <= YOUNG and bool(selected.any()):
            gap = (log_probs - inputs["old_log_probs"][selected]).abs().mean().item()
            audit.sampler.look(gap, int(self.state.global_step), dict)

    def floating_point_ops(self, inputs: dict[str, list[LossInputs]]) -> int:
        """Of one update, for transformers' own count."""
        return sum(super(SandboxAsyncTrainer, self).floating_point_ops(b) for b in inputs["micro_batches"])

    def update_finished(self) -> None:
        """The optimizer has taken a step: what was packed for it is used.

        Raises:
            SetupError: on every rank, when the ledger, or what the update consisted of, cannot be written.
        """
        with together():
            groups = self.progress.finish_update(left_out=self.update_left_out)
            used = {g.number for g in groups if any(s.end is SampleEnd.USED for s in g.samples)}
            self._trained_groups |= used  # TRL's metric of groups per step
            if self._compositions is not None:
                self._compositions.finished()
            if self._ledger is not None:
                self._ledger.write(Update(int(self.state.global_step), time.time(), tuple(groups)))

    def _sync_weight(self) -> None:
        """Publish the weights; TRL calls it before the first update and after every n-th.

        Raises:
            EngineFault: on every rank, when a server did not take the weights.
        """
        started = time.monotonic()
        self._policy.publish(int(self.state.global_step))
        timing = self._weights.timing
        for name, seconds in {
            "": time.monotonic() - started,
            "pause_": timing.pause_s,
            "barrier_": timing.gather_s,  # TRL's name for what is waited for before the transfer
            "transfer_": timing.send_s,
        }.items():
            self._metrics["train"][f"perf/weight_sync_{name}s"].append(seconds)

    def sync_policy(self) -> None:
        """Bring the servers up to date before an evaluation; they begin with the weights of step 0."""
        if self.state.global_step > 0:
            super().sync_policy()


class _Border(TrainerCallback):  # type: ignore[misc]
    """What happens between two updates: samples become used; a run that was asked to stop saves and ends."""

    def __init__(
        self, trainer: SandboxAsyncTrainer, stop: Callable[[], bool], stopped: Callable[[], None]
    ) -> None:
        self._trainer = trainer
        self._tell = stopped
        self._agreed = False
        self._saved_step = -1
        self.stop = stop

    def stopped(self) -> None:
        """All ranks have agreed to stop."""
        self._agreed = True
        self._tell()

    def on_step_end(self, args: object, state: object, control: object, **kwargs: Any) -> None:
        """Before anything is published or saved."""
        self._trainer.update_finished()

    def on_save(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
        """Remember which step has a checkpoint."""
        self._saved_step = state.global_step

    def on_train_end(self, args: object, state: object, control: object, **kwargs: Any) -> None:
        """A signal in the last update is everybody's as well."""
        if not self._agreed:
            self._trainer._rollout_dataset.asked_to_stop()

    def on_epoch_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """There was no further update: save, unless just this step was saved, and end."""
        if self._agreed:
            control.should_training_stop = True
            control.should_save = 0 < state.global_step != self._saved_step
