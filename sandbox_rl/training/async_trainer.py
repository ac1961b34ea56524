"""TRL's asynchronous GRPO trainer with our attention, worker and weight transfer. Its update is its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from trl.experimental.async_grpo import AsyncGRPOTrainer, async_grpo_trainer

from sandbox_rl.training.log_probs import float32_log_probs
from sandbox_rl.training.tree_attention import register_tree_attention
from sandbox_rl.training.weight_merge import checkpoint_tensors

__all__ = ["GroupProgress", "SandboxAsyncTrainer"]

STATE_FILE = "groups.json"


class SandboxAsyncTrainer(AsyncGRPOTrainer):  # type: ignore[misc]
    """`trl.experimental.AsyncGRPOTrainer`; what of it is relied upon is pinned by tests/smoke."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _without_peak_flops():
            super().__init__(*args, **kwargs)
        register_tree_attention()
        float32_log_probs(self.model, temperature=self.temperature)
        self._published_step = -1

    @property
    def trained_groups(self) -> set[int]:
        """Ids of the groups that went into an update; on the main process."""
        trained: set[int] = self._trained_groups
        return trained

    def _sync_weight(self) -> None:
        super()._sync_weight()
        self._published_step = int(self.state.global_step)

    def _sync_weight_merged(self, t0: float) -> tuple[float, float, float]:
        """As TRL's, but what is sent is gathered before requests freeze, and adapters are folded into a copy.

        TRL merges them in place and takes them out again: a bfloat16 base would drift with every publication.
        """
        transfer = self.weight_transfer if self.accelerator.is_main_process else None
        tensors = checkpoint_tensors(self.accelerator.unwrap_model(self.model))
        staged = None if transfer is None else transfer.stage(tensors)
        if transfer is None:
            for _ in tensors:  # gathering a sharded tensor takes every rank
                pass
        self.accelerator.wait_for_everyone()
        gathered = time.time()
        if transfer is not None:
            transfer.pause()
        paused = time.time()
        if transfer is not None:
            transfer.send(staged)
        sent = time.time()
        self.accelerator.wait_for_everyone()
        if transfer is not None:
            transfer.resume()
        if self.accelerator.is_main_process:
            self.model_version += 1
            if self.rollout_worker:
                self.rollout_worker.update_model_version(self.model_version)
        # TRL logs the differences as pause, barrier (here with what is staged) and transfer.
        return t0 + paused - gathered, paused, sent

    def sync_policy(self) -> None:
        """Bring the servers up to date before an evaluation."""
        if self.state.global_step > 0 and self._published_step != self.state.global_step:
            self._sync_weight()


@contextmanager
def _without_peak_flops() -> Iterator[None]:
    """TRL 1.16 asks CUDA for the card's name, for its MFU metric, also where there is no card.

    Unknown cards have None there; so have CPUs while open.
    """
    if torch.cuda.is_available():
        yield
        return
    original = async_grpo_trainer.get_peak_flops_per_device
    async_grpo_trainer.get_peak_flops_per_device = lambda *_: None
    try:
        yield
    finally:
        async_grpo_trainer.get_peak_flops_per_device = original


class GroupProgress:
    """Which groups are behind us: a resumed run neither trains one twice nor leaves one out.

    Args:
        trained, skipped: ids so far, asked for at each save; skipped ones taught nothing or failed.
    """

    def __init__(self, trained: Callable[[], set[int]], skipped: Callable[[], set[int]]) -> None:
        self._trained = trained
        self._skipped = skipped
        self._before: frozenset[int] = frozenset()

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint's directory."""
        done = self._before | self._trained() | self._skipped()
        first = next(group for group in range(len(done) + 1) if group not in done)
        ahead = sorted(group for group in done if group > first)
        (checkpoint / STATE_FILE).write_text(json.dumps({"first": first, "ahead": ahead}))

    def restore(self, checkpoint: Path) -> frozenset[int]:
        """The groups that a checkpoint has behind it.

        Raises:
            ValueError: the file is not one of ours.
        """
        state = json.loads((checkpoint / STATE_FILE).read_text())
        self._before = frozenset(range(state["first"])) | frozenset(state["ahead"])
        return self._before
