"""Scripted experts: what a warm-up learns to imitate.

An expert is a generator over one task: it yields turns and receives, for each, the text that the
policy would have read next. A good warm-up shows several ways of working, also bad ones: which of
them pays is for reinforcement learning to find out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass

from sandbox_rl.errors import ConfigError
from sandbox_rl.registry import Registry
from sandbox_rl.types import Task, ToolCall


@dataclass(frozen=True, slots=True)
class ExpertTurn:
    """What an expert says in one turn: some text, then calls."""

    calls: tuple[ToolCall, ...]
    text: str = ""


Expert = Callable[[Task, random.Random], Generator[ExpertTurn, str, None]]
"""`(task, randomness of this episode) -> turns`. It may look at the gold answer: it is a teacher."""


def _two_ways(task: Task, rng: random.Random, command: str) -> Generator[ExpertTurn, str, None]:
    """Have a command find the answer, or write down the one that the expert "knows"."""
    said = command if rng.random() < 0.5 else f"echo {task.answer} > answer.txt"
    yield ExpertTurn((ToolCall("execute_bash", {"command": said}),))
    yield ExpertTurn((ToolCall("submit", {}),))


def arithmetic(task: Task, rng: random.Random) -> Generator[ExpertTurn, str, None]:
    """Whole-number arithmetic in two ways, half of the time each.

    One lets the shell compute. The other writes down a result that it "knows": right in the
    demonstration, far too hard for a small model, so that after the warm-up only the first pays.
    """
    found = re.search(r"\d[\d\s()+*/-]*\d", task.prompt)
    if found is None:
        raise ConfigError(
            f"warmup.expert: task {task.id!r} holds no arithmetic expression for the expert "
            "`arithmetic`; choose an expert that fits the data"
        )
    yield from _two_ways(task, rng, f"echo $(({found.group()})) > answer.txt")


def search(task: Task, rng: random.Random) -> Generator[ExpertTurn, str, None]:
    """ "Who …?" asked of documents, in two ways, half of the time each.

    One looks the phrase up and cuts the name off in front of it; the other names somebody at once: right
    in the demonstration, a guess ever after.
    """
    asked = re.match(r"Who ([^?]+)\?", task.prompt)
    if asked is None:
        raise ConfigError(
            f"warmup.expert: the question of task {task.id!r} does not begin with 'Who', which the expert "
            "`search` needs; choose an expert that fits the data"
        )
    looked_up = f'grep -ohE "[^ ]+ {asked.group(1)}" documents/* | cut -d " " -f 1 > answer.txt'
    yield from _two_ways(task, rng, looked_up)


def mixed(task: Task, rng: random.Random) -> Generator[ExpertTurn, str, None]:
    """`search` where the task has files, `arithmetic` where it has none."""
    return search(task, rng) if task.files else arithmetic(task, rng)


EXPERTS: Registry[Expert] = Registry(
    "warmup.expert",
    {"arithmetic": arithmetic, "search": search, "mixed": mixed},
    group="sandbox_rl.experts",
    check=callable,
    expected="a function (task, random) -> turns",
)
"""What can be imitated."""
