"""What one of two processes does in tests/smoke/test_launch.py: an update in parts under data parallelism."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from tests.smoke.support import EOS, RecordGradients, make_rollout, make_trainer
from tests.smoke.test_update import Prepared

REWARDS = (1.0, 0.0, 0.25, 1.0, 0.0, 0.5, 0.0, 1.0) * 2
BUDGET = 100
"""Parts of other sizes on each process, had they not agreed."""


class Played(Prepared):
    """Of all processes: each asks for its own groups."""

    async def run(self, requests, observer=None):
        groups = {task: [r for r in self.rollouts if r.task.id == task] for task in "abcd"}
        return [groups[request.task.id].pop(0) for request in requests]


def gradients(directory: Path, budget: int | None) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Of one update, and how many parts each micro-batch was computed in."""
    rollouts = [
        make_rollout("abcd"[i // 4], reward, seed=i, turns=1 + i % 3, length=4 + i)
        for i, reward in enumerate(REWARDS)
    ]
    recorded, counts = RecordGradients(), []

    class InParts(SandboxGRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, micro_batch_tokens=budget, **kwargs)

        def compute_loss(self, *args, **kwargs):
            counts.append(0)
            return super().compute_loss(*args, **kwargs)

        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            if counts:  # else it is not of a loss yet
                counts[-1] += 1
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    with LoopThread() as loop:
        tasks = {r.task.id: r.task for r in rollouts}
        func = GroupRollouts(
            Played(rollouts),
            loop,
            tasks,
            estimator="trl",
            seed=0,
            eos_id=EOS,
            rank=int(os.environ["RANK"]),
            world=int(os.environ["WORLD_SIZE"]),
            shuffle=False,
        )
        trainer = make_trainer(
            directory,
            func,
            outcome_reward,
            cls=InParts,
            tasks=tuple("abcd"),
            callbacks=[recorded],
            loss_type="bnpo",
        )
        trainer.train()
    return recorded.steps[0], counts


def main() -> None:
    directory = Path(sys.argv[1])
    whole, _ = gradients(directory / "whole", None)
    parts, counts = gradients(directory / "parts", BUDGET)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-4
    for name, gradient in whole.items():
        assert (parts[name] - gradient).abs().max() <= 1e-6 + 1e-5 * gradient.abs().max(), name
    # Into files: lines of two processes in one pipe get mixed.
    (directory / f"rank-{torch.distributed.get_rank()}").write_text(f"{counts[0]} parts")


if __name__ == "__main__":
    main()
