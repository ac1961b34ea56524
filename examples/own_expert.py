"""An expert of your own for the warm-up: `warmup: {expert: "own_expert:reads_or_guesses"}`."""

from __future__ import annotations

import random
from collections.abc import Generator

from sandbox_rl import ExpertTurn, Task, ToolCall


def reads_or_guesses(task: Task, rng: random.Random) -> Generator[ExpertTurn, str, None]:
    """Two ways, half of the time each: copy the file, or write a number down.

    The expert is a teacher and may look at the gold answer, so both succeed in its hands; the model that
    imitates it cannot know the number. Which of the two pays is for reinforcement learning to find out.
    """
    read = rng.random() < 0.5
    command = "cp documents/code.txt answer.txt" if read else f"echo {task.answer} > answer.txt"
    yield ExpertTurn((ToolCall("execute_bash", {"command": command}),))
    yield ExpertTurn((ToolCall("submit", {}),))
