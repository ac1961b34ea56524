"""What `gpu_bench_steps.py` warms its policy up with: sums by the shell, with commands that take time."""

from __future__ import annotations

import random
from collections.abc import Generator

from sandbox_rl.training.experts import ExpertTurn, arithmetic
from sandbox_rl.types import Task, ToolCall

SECONDS = (0.05, 0.1, 0.1, 0.6)
"""As unequal as tools are: an interpreter that starts, a program that computes."""


def waiting(task: Task, rng: random.Random) -> Generator[ExpertTurn, str, None]:
    """The expert `arithmetic`, each of whose commands sleeps first."""
    for turn in arithmetic(task, rng):
        (call,) = turn.calls
        if call.name == "execute_bash":
            command = f"sleep {rng.choice(SECONDS)}; {call.arguments['command']}"
            turn = ExpertTurn((ToolCall("execute_bash", {"command": command}),), turn.text)
        yield turn
