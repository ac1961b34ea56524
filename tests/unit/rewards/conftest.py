"""One scoring pool for all tests of a module: starting it takes a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.types import Answer, AnswerStatus, Reward, Task

ScoreNow = Callable[..., Reward]


def make_task(gold: Any, scorer: str = "math", **metadata: Any) -> Task:
    return Task(id="t", prompt="6*7?", answer=gold, scorer=scorer, metadata=metadata)


def ok(text: Any) -> Answer:
    return Answer(AnswerStatus.OK, text)


USER = "tests.unit.rewards.user_scorers"
USERS = tuple(
    f"{USER}:{name}" for name in ("length", "parts", "raises", "hangs", "dies", "eats", "nan", "modules")
)


def scoring_pool(*, expected: Sequence[str] = (), **settings: Any) -> ScoringPool:
    """A pool whose workers live in sandboxes, as in a run."""
    place = ProgramSandboxes(PROGRAM, memory_mb=2048)
    return ScoringPool(place, RewardSettings(**settings), expected=expected)


@pytest.fixture(scope="module")
def pool_runner() -> Iterator[tuple[ScoringPool, Callable[[Awaitable[Any]], Any]]]:
    """A running pool with two-second limits, and what runs a coroutine on its loop."""
    with asyncio.Runner() as runner:
        pool = scoring_pool(workers=2, timeout_s=1.5, expected=("math", *USERS))
        runner.run(pool.__aenter__())
        try:
            yield pool, runner.run
        finally:
            runner.run(pool.__aexit__(None, None, None))


@pytest.fixture
def score(pool_runner: Any) -> ScoreNow:
    pool, run = pool_runner

    def now(answer: Any, gold: Any, scorer: str = "math", **metadata: Any) -> Reward:
        return run(pool.score(make_task(gold, scorer, **metadata), ok(answer)))

    return now
