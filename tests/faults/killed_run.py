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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from sandbox_rl.agents.base import AgentSession, Around, SessionSetup
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.cli import main
from sandbox_rl.journal import Journal
from sandbox_rl.ledger import Ledger
from sandbox_rl.policies.base import Policy, PolicySession, TurnSampling
from sandbox_rl.policies.transformers import TransformersPolicy
from sandbox_rl.rewards.pool import ScoringPool
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
    "pruning": (checkpoints, "delete", "before"),
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


class Beginning(Around[Policy]):
    """Another policy, whose episodes begin with these ids."""

    def __init__(self, policy: Policy, ids: tuple[int, ...]) -> None:
        super().__init__(policy)
        self.ids = ids

    @property
    def max_context(self) -> int:
        return self.inner.max_context

    @asynccontextmanager
    async def session(self, episode_id: str) -> AsyncIterator[PolicySession]:
        async with self.inner.session(episode_id) as session:
            yield BegunSession(session, self.ids)


@dataclass
class BegunSession:
    inner: PolicySession
    ids: tuple[int, ...]

    async def act(self, prompt_ids: Sequence[int], sampling: TurnSampling, *, timeout: float) -> Action:
        ids, self.ids = self.ids, ()
        if ids:
            return Action(ids, (-1.0,) * len(ids), "stop")
        return await self.inner.act(prompt_ids, sampling, timeout=timeout)


def answer_of(setup: SessionSetup) -> str:
    """The command that writes an answer which follows from the episode's seed."""
    return f"echo {setup.request.seed % 3} > /testbed/answer.txt"


def script_first_turns(command_of: Callable[[SessionSetup], str] = answer_of) -> None:
    """Each episode begins with this command; the other turns are sampled."""
    inner = TokenAgent.session

    def session(self: TokenAgent, setup: SessionSetup) -> AbstractAsyncContextManager[AgentSession]:
        ids = self.chat.render_call("", [ToolCall("execute_bash", {"command": command_of(setup)})])
        return inner(TokenAgent(Beginning(self.inner, ids), self.chat), setup)

    TokenAgent.session = session  # type: ignore[method-assign]


def earn_by_answer() -> None:
    inner = ScoringPool.score

    async def score(self: Any, task: Any, answer: Any) -> Reward:
        found = await inner(self, task, answer)
        digit = (answer.text or "").strip()
        return Reward(float(digit) / 2 if digit.isdigit() else 0.0, seconds=found.seconds)

    ScoringPool.score = score  # type: ignore[method-assign]


def slow_groups(world: int, size: int) -> None:
    """Of three groups that a process starts, the last never ends, unless it is waited for."""
    inner = TokenAgent.session

    @asynccontextmanager
    async def session(self: TokenAgent, setup: SessionSetup) -> AsyncIterator[AgentSession]:
        name = setup.request.id
        number = group_of(name)
        if number is not None and ".retried" not in name and (number // world) % (size + 1) == size:
            await asyncio.sleep(3600)
        async with inner(self, setup) as opened:
            yield opened

    TokenAgent.session = session  # type: ignore[method-assign]


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
