"""Five updates under DeepSpeed's ZeRO-3: how much of its float32 masters moved. A program for one process.

`DS_ACCELERATOR=cpu torchrun --nproc_per_node 1 -m tests.smoke.zero3 DIRECTORY` writes `moved.json` there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.precision_paths import RATE
from tests.smoke.support import given_reward, make_rollout, make_trainer, rows_of

DEEPSPEED = {
    "zero_optimization": {"stage": 3},
    "bf16": {"enabled": True},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


class Masters(TrainerCallback):
    """The weights that ZeRO-3 updates, after the first and after the last update."""

    def __init__(self) -> None:
        self.first: list[torch.Tensor] = []
        self.last: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        while not hasattr(optimizer, "fp32_partitioned_groups_flat"):
            optimizer = optimizer.optimizer
        self.last = [part.detach().clone() for part in optimizer.fp32_partitioned_groups_flat]
        self.first = self.first or self.last


def main() -> None:
    directory = Path(sys.argv[1])
    rows = [make_rollout("abcd"[i // 4], float(i % 2), seed=i) for i in range(8)]
    masters = Masters()
    trainer = make_trainer(
        directory,
        lambda prompts, trainer: rows_of(rows),
        given_reward,
        cls=SandboxGRPOTrainer,
        callbacks=[masters],
        max_steps=5,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        bf16=True,
        deepspeed=DEEPSPEED,
    )
    trainer.train()
    changed = torch.cat([(a != b).flatten() for a, b in zip(masters.first, masters.last, strict=True)])
    found = {"share": changed.float().mean().item(), "dtypes": sorted({str(m.dtype) for m in masters.last})}
    (directory / "moved.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
