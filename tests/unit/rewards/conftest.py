"""One scoring pool for all tests of a module: starting it takes a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.types import Answer, AnswerStatus, Reward, Task

ScoreNow = Callable[..., Reward]


def make_task(gold: Any, scorer: str = "math", **metadata: Any) -> Task:
    return Task(id="t", prompt="6*7?", answer=gold, scorer=scorer, metadata=metadata)


def ok(text: Any) -> Answer:
    return Answer(AnswerStatus.OK, text)


@pytest.fixture(scope="module")
def pool_runner() -> Iterator[tuple[ScoringPool, Callable[[Awaitable[Any]], Any]]]:
    """A running pool with two-second limits, and what runs a coroutine on its loop."""
    with asyncio.Runner() as runner:
        pool = ScoringPool(workers=2, timeout=3.0)
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
