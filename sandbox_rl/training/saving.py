"""Checkpoints that all processes save, or none: a write that fails on one of them ends the save on all.

While a sharded model is saved, exchanges between processes alternate with writes of one of them. A process
that left at its failed write would keep the others waiting in the next exchange. So a failed write is kept in
mind, the exchanges go on, and at the end the processes agree.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from sandbox_rl.errors import SandboxRLError, SetupError
from sandbox_rl.training.agreement import any_of, together
from sandbox_rl.training.checkpoints import SAVING, is_complete, prune, publish, remove_leftovers
from sandbox_rl.training.generations import Generations

__all__ = ["AgreedSaves"]

logger = logging.getLogger(__name__)


class AgreedSaves:
    """Mixed into a trainer of transformers, before it. Its own writes and those of accelerate and DeepSpeed,
    which use `torch.save`, are kept in mind; that of DeepSpeed's file `latest` is not.

    transformers writes, and removes older checkpoints, below `_get_output_dir`. While it saves, that is a
    directory of its own, so that it neither shows what is not whole nor removes anything; see `checkpoints`.
    """

    saved: Sequence[Callable[[Path], None]] = ()
    """Each writes what else belongs into a checkpoint's directory, on the main process."""

    _failed: list[Exception] | None = None  # failed writes of the save that is going on

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As transformers does, but seen once it is whole and on the disk; older ones are removed after that.

        Every process must call it. A step that has a complete checkpoint keeps that.

        Raises:
            SetupError: on every process, when one of them could not write. Older checkpoints are as before.
        """
        base: Any = super()
        trainer: Any = self
        directory, name = Path(trainer.args.output_dir), f"checkpoint-{trainer.state.global_step}"
        partial, main = directory / SAVING / name, trainer.accelerator.is_main_process
        if any_of(main and is_complete(directory / name)):
            return
        try:
            with together():
                if main:
                    remove_leftovers(directory)
            with together():
                partial.mkdir(parents=True, exist_ok=True)
            with together(), self._writing():
                base._save_checkpoint(*args, **kwargs)
            with together():
                if main:
                    for save in self.saved:
                        save(partial)
                    publish(partial, directory / name)
        finally:
            if main:
                shutil.rmtree(directory / SAVING, ignore_errors=True)
        if main:
            prune(directory, trainer.args.save_total_limit)

    def _get_output_dir(self, *args: Any, **kwargs: Any) -> str:
        base: Any = super()
        directory: str = base._get_output_dir(*args, **kwargs)
        return directory if self._failed is None else str(Path(directory) / SAVING)

    def keep_last_update(self) -> None:
        """Save what the last update left, if that is not saved yet, for a run that ends on a fault.

        Every process must call it. Where an update holds several generations, those that it began with are
        counted already: nothing is saved then, and the run goes on from the checkpoint before.
        """
        trainer: Any = self
        args, step = trainer.args, int(trainer.state.global_step)
        rhythm = Generations.of(args) if hasattr(args, "steps_per_generation") else None
        resumable = rhythm is None or (rhythm.is_border(step) and rhythm.every >= rhythm.accumulation)
        if step == 0 or not resumable:
            return
        try:
            self._save_checkpoint(trainer.model, None)
            trainer.callback_handler.on_save(args, trainer.state, trainer.control)
        except SandboxRLError as error:  # the fault that ends the run is the one to be told
            logger.warning("step %d: no checkpoint could be kept: %s", step, error)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Written by the first process, before all exchange something."""
        base: Any = super()
        self._keeping(base.create_model_card)(*args, **kwargs)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        base: Any = super()
        self._keeping(base._save)(*args, **kwargs)

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
