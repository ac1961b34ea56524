"""What one of two processes runs in tests/smoke/test_agreement.py: `train`, with a fault on one of them."""

from __future__ import annotations

import os
import sys

from sandbox_rl.cli import main
from sandbox_rl.errors import SandboxFault
from sandbox_rl.sandboxes.pool import SandboxPool
from sandbox_rl.training.experts import ExpertTurn
from sandbox_rl.types import ToolCall

RANK = os.environ.get("RANK", "0")


def no_sandbox_after(sandboxes: int):
    inner = SandboxPool.sandbox

    def sandbox(*given, **named):
        nonlocal sandboxes
        sandboxes -= 1
        if sandboxes < 0:
            raise SandboxFault("no memory for a sandbox")
        return inner(*given, **named)

    return sandbox


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def gives_up(task, rng):
    """An expert that a warm-up cannot learn from."""
    yield ExpertTurn((ToolCall("submit", {}),))


if __name__ == "__main__":
    fault, *arguments = sys.argv[1:]
    if fault == f"rollouts-{RANK}":
        SandboxPool.sandbox = no_sandbox_after(8)  # of the first step
    if fault == f"save-{RANK}":
        # Here: a process of rollouts imports this file too, and has no use for PyTorch.
        from transformers import Trainer

        Trainer._save_rng_state = full_disk
    main(["train", *arguments])
