"""What one of two processes does in tests/smoke/test_saving.py: saves of which a file cannot be written.

`torchrun … -m tests.smoke.saves WAY DIRECTORY` writes `NAME-RANK.txt` there for each of `FAULTS`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import distributed

from sandbox_rl.errors import SetupError
from sandbox_rl.training import base_trainer as trainer_module
from sandbox_rl.training.checkpoints import SAVING, last_complete
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.precision_paths import shard
from tests.smoke.support import given_reward, make_rollout, make_trainer, rows_of

FAULTS = {
    "ddp": ("README.md", "checkpoint-1/optimizer.pt", "checkpoint-1/rng_state_1.pth"),
    "fsdp2": (
        *("README.md", "checkpoint-1/pytorch_model_fsdp.bin"),
        *("checkpoint-1/optimizer.bin", "checkpoint-1/rng_state_1.pth"),
    ),
}
"""Way → files whose device is full."""


class Faulty(SandboxGRPOTrainer):
    """One file of the save cannot be written."""

    fault: Path | None = None

    def create_model_card(self, *args, **kwargs):
        """The first thing that a save writes."""
        if self.fault is not None and self.accelerator.is_main_process:
            self.fault.symlink_to("/dev/full")
        self.accelerator.wait_for_everyone()
        super().create_model_card(*args, **kwargs)


def saved(directory: Path, fault: Path | None) -> str:
    """What came of an update and its checkpoint, as this process sees it."""
    rows = [make_rollout("abcd"[i // 4], float(i % 2), seed=i) for i in range(8)]
    trainer = make_trainer(
        directory,
        lambda prompts, _: rows_of(rows),
        given_reward,
        cls=Faulty,
        tasks=tuple("abcd"),
        bf16=True,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
    )
    trainer.fault = fault
    try:
        trainer.train()
    except SetupError as error:
        return f"SetupError said_elsewhere={error.said_elsewhere}: {error}"
    return f"saved {last_complete(directory)}"


def main() -> None:
    way, directory = sys.argv[1], Path(sys.argv[2])
    if way == "fsdp2":
        trainer_module.settle_precision = shard
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for fault in (*FAULTS[way], "none"):
        place = directory / fault.replace("/", ".")
        if rank == 0:
            place.mkdir(parents=True)
        distributed.barrier()
        file = place / (fault if fault == "README.md" else f"{SAVING}/{fault}")
        # To a file: what two processes print into one pipe gets mixed.
        (directory / f"{place.name}-{rank}.txt").write_text(saved(place, None if fault == "none" else file))


if __name__ == "__main__":
    main()
