"""What one of two processes does in tests/smoke/test_audit_parallel.py: steps under audit, sound and undone.

`torchrun … -m tests.smoke.audit_paths WAY DIRECTORY` writes `healthy-RANK.txt` and `undone-RANK.txt` there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed
from transformers import TrainerCallback

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.training import base_trainer as trainer_module
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.precision_paths import shard
from tests.smoke.support import given_reward, make_rollout, make_trainer, rows_of

STEPS = 3


def local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


class UndoOnOneRank(TrainerCallback):
    """Puts this process's weights back after each update, the last process's only."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._was = [local(p).detach().clone() for p in model.parameters()]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if distributed.get_rank() == distributed.get_world_size() - 1:
            with torch.no_grad():
                for parameter, was in zip(model.parameters(), self._was, strict=True):
                    local(parameter).copy_(was)


def seen(directory: Path, *callbacks: TrainerCallback) -> str:
    """The alarms of this process, and how much of each update was applied."""
    audit = RunAudit.start(mismatch_alarm=100.0)  # nobody sampled these rows
    rows = [make_rollout("abcd"[i // 4], float(i % 2), seed=i) for i in range(8)]
    trainer = make_trainer(
        directory,
        lambda prompts, _: rows_of(rows),
        given_reward,
        cls=lambda **given: SandboxGRPOTrainer(audit=audit, **given),
        tasks=tuple("abcd"),
        callbacks=callbacks,
        bf16=True,
        learning_rate=1e-4,
        max_steps=STEPS,
    )
    applied: list[float] = []
    take = audit.updates.take
    audit.updates.take = lambda: applied.append(take().get("update/applied", 0.0)) or {}
    audit.samples.in_loss = lambda *_: None  # rows that no audit was told of
    trainer.train()
    names = sorted({alarm.name.value for alarm in audit.alarms.raised})
    return f"{names} {len(applied)} {min(applied):.2f} {max(applied):.2f}"


def main() -> None:
    way, directory = sys.argv[1], Path(sys.argv[2])
    if way == "fsdp2":
        trainer_module.settle_precision = shard
    distributed.init_process_group("gloo")
    for name, callbacks in (("healthy", ()), ("undone", (UndoOnOneRank(),))):
        # To a file: what two processes print into one pipe gets mixed.
        (directory / f"{name}-{distributed.get_rank()}.txt").write_text(seen(directory / name, *callbacks))


if __name__ == "__main__":
    main()
