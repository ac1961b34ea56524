"""`train` whose process is killed at a named point; what kill_points.py starts.

`python -m tests.faults.killed_run POINT RANK COUNTS RECIPE [ARGUMENT]...`: POINT is `none` or `KIND:N`, for
the N-th time that a kind of `POINTS` is reached on the process RANK; `KIND:N:term` sends SIGTERM. With
`none`, how often each kind was reached is written to COUNTS-RANK.json.

The first turn of each episode writes an answer that follows from the episode's seed, the others are sampled;
what an answer earns follows from it. With over-sampling, which groups are slow follows from their numbers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from sandbox_rl.agents import tokens
from sandbox_rl.agents.base import AgentTurn
from sandbox_rl.cli import main
from sandbox_rl.journal import Journal
from sandbox_rl.ledger import Ledger
from sandbox_rl.policies.transformers import TransformersPolicy
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.tools.toolbox import Toolbox
from sandbox_rl.training import base_trainer, checkpoints, group_rollouts
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.callbacks import LogMetrics
from sandbox_rl.training.groups import group_of
from sandbox_rl.types import Action, Reward, ToolCall

POINTS: dict[str, tuple[Any, str, str]] = {
    # kind: (owner, attribute, when)
    "generation": (TransformersPolicy, "act", "before"),
    "tool call": (Toolbox, "run", "before"),
    "scoring": (ScoringPool, "score", "before"),
    "journal": (Journal, "ended", "after"),
    "rows": (group_rollouts, "to_rows", "after"),
    "backward": (Accelerator, "backward", "after"),
    "before the step": (AcceleratedOptimizer, "step", "before"),
    "after the step": (AcceleratedOptimizer, "step", "after"),
    "ledger": (Ledger, "write", "after"),
    "arrival": (GroupProgress, "arrive", "after"),
    "metrics": (LogMetrics, "on_log", "after"),
    "save": (torch, "save", "before"),
    "rename": (base_trainer, "publish", "before"),
    "saved": (base_trainer, "publish", "after"),
    "pruning": (checkpoints, "_delete", "before"),
}


class Points:
    """Counts, and kills this process when its time has come."""

    def __init__(self, wanted: str) -> None:
        self.kind, number, *how = (*wanted.split(":"), "0")[:3]
        self.left = int(number)
        self.signal = signal.SIGTERM if how == ["term"] else signal.SIGKILL
        self.counts: Counter[str] = Counter()

    def reached(self, kind: str) -> None:
        self.counts[kind] += 1
        if kind == self.kind:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), self.signal)

    def install(self) -> None:
        for kind, (owner, name, when) in POINTS.items():
            setattr(owner, name, self.around(getattr(owner, name), kind, when))

    def around(self, inner: Callable[..., Any], kind: str, when: str) -> Callable[..., Any]:
        async def later(*args: Any, **kwargs: Any) -> Any:
            self.reached(kind)
            return await inner(*args, **kwargs)

        def now(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                self.reached(kind)
            result = inner(*args, **kwargs)
            if when == "after":
                self.reached(kind)
            return result

        return later if inspect.iscoroutinefunction(inner) else now


def script_first_turns(command_of: Callable[[], str] = str) -> None:
    """Each episode begins with the command given, or with one that writes an answer where that is empty."""
    inner = tokens._TokenSession.act

    async def act(self: Any, *, timeout: float) -> AgentTurn:
        if self._turn:
            return await inner(self, timeout=timeout)
        command = command_of() or f"echo {self._setup.request.seed % 3} > /testbed/answer.txt"
        ids = self._chat.render_call("", [ToolCall("execute_bash", {"command": command})])
        self._turn += 1
        self._sequence.extend(ids)
        text = self._chat.turn_text(ids)
        self._action, self._calls = ids, self._chat.calls_of(text)
        return AgentTurn(Action(ids, (-1.0,) * len(ids), "stop"), self._calls, text)

    tokens._TokenSession.act = act  # type: ignore[method-assign]


def earn_by_answer() -> None:
    inner = ScoringPool.score

    async def score(self: Any, task: Any, answer: Any) -> Reward:
        found = await inner(self, task, answer)
        digit = (answer.text or "").strip()
        return Reward(float(digit) / 2 if digit.isdigit() else 0.0, seconds=found.seconds)

    ScoringPool.score = score  # type: ignore[method-assign]


def slow_groups(world: int, size: int) -> None:
    """Of three groups that a process starts, the last never ends, unless it is waited for."""
    inner = RolloutEngine._attempt

    async def attempt(self: Any, request: Any, **given: Any) -> Any:
        number = group_of(request.id)
        if number is not None and ".retried" not in request.id and (number // world) % (size + 1) == size:
            await asyncio.sleep(3600)
        return await inner(self, request, **given)

    RolloutEngine._attempt = attempt  # type: ignore[method-assign]


if __name__ == "__main__":
    point, rank, counts, *arguments = sys.argv[1:]
    mine, world = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    points = Points(point if mine == rank else "none")
    script_first_turns()
    earn_by_answer()
    if any("over_sample" in argument for argument in arguments):
        slow_groups(world, 2 // world)
    points.install()
    try:
        main(["train", *arguments])
    finally:
        if point == "none":
            Path(f"{counts}-{mine}.json").write_text(json.dumps(points.counts))
