"""The expert of mixed tasks follows each task's kind."""

from __future__ import annotations

import random

from sandbox_rl.training.experts import arithmetic, mixed, search
from sandbox_rl.types import Task

SUM = Task("sum", "State the final answer to the following arithmetic problem: 123 + 456 =", "579")
QUESTION = Task(
    "who", "Who likes tea? Reply only with a name.", "Ann", files={"documents/notes.txt": b"Ann likes tea."}
)


def turns(expert, task, seed):
    return list(expert(task, random.Random(seed)))


def test_mixed_plays_the_expert_of_the_task():
    for seed in range(8):
        assert turns(mixed, SUM, seed) == turns(arithmetic, SUM, seed)
        assert turns(mixed, QUESTION, seed) == turns(search, QUESTION, seed)
    commands = {turns(mixed, QUESTION, seed)[0].calls[0].arguments["command"] for seed in range(8)}
    assert len(commands) == 2, "it shows both ways"
