"""SCO: answers that attack the scorer. Each gets its fair reward within the budget; none is masked."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.types import Answer, AnswerStatus, Reward, Task
from tests.hostile_answers import BACKTRACKING, FACTORIALS, NESTING, TOWERS

from .conftest import BESIDE_OTHERS

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOMBS = {
    "SCO-01": [
        *TOWERS,
        r"\boxed{\left(10^{10}\right)^{10^{10}}}",
        r"\boxed{7^{7^{7^7}} \bmod 1000}",
        "1e999999999",
    ],
    "SCO-02": [*FACTORIALS, r"\boxed{\int_0^{1} x^{x^{x^{x^{x}}}} dx}", r"\boxed{\lim_{n\to\infty} n!}"],
    "SCO-03": [*NESTING, "\\sqrt{" * 2000 + "2" + "}" * 2000, "{" * 30000 + "}" * 30000],
    "SCO-04": [*BACKTRACKING, "1 " * 30000 + "x", "\\boxed{" + "a" * 50000],
}

HEDGES = [
    " ".join(map(str, range(1000))),
    "41 42",
    "42 or 43",
    r"\boxed{41} \boxed{42}",
    r"\boxed{\{0,1,...,99\}}",
    r"\boxed{41=42}",
    "The answer is not 42.",
    "Candidates: 1, 2, 42",
    r"\boxed{\mathbb{R}}",
    r"\boxed{x}",
    "41, 42",
    "41\n42",
    "42 43 44",
    r"\boxed{41,42}",
    "either 41 or 42",
    "x=41 or x=42",
    "42%",
    "42 ± 10",
    "[0, 100]",
    r"\boxed{42} is wrong, it is \boxed{41}",
    "0 <= x <= 100",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ScoringPool]:
    async with ScoringPool(
        ProgramSandboxes(PROGRAM, memory_mb=2048), RewardSettings(timeout_s=6.0), expected=("math",)
    ) as made:
        yield made


async def score(pool: ScoringPool, answer: str, gold: str = "42", scorer: str = "math") -> Reward:
    task = Task("t", "6*7?", gold, scorer=scorer)
    return await pool.score(task, Answer(AnswerStatus.OK, answer))


@pytest.mark.parametrize("case_id", sorted(BOMBS))
async def test_bombs_score_zero_in_time(pool: ScoringPool, case_id: str) -> None:
    """By the scorer's own verdict: one that is killed at the end of its time says so."""
    for answer in BOMBS[case_id]:
        reward = await score(pool, answer)
        assert (reward.value, reward.parts, reward.detail) == (0.0, {}, ""), answer[:40]
    assert (await score(pool, "42")).value == 1.0


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def test_integers_beyond_the_limit_of_str(pool: ScoringPool) -> None:
    """SCO-05."""
    for answer in ("9" * 5000, "9" * 60000, "1" + "0" * 4300, "-" + "9" * 5000):
        assert (await score(pool, answer)).value == 0.0
    assert (await score(pool, "0" * 5000 + "42")).value in (0.0, 1.0)
    assert (await score(pool, "9" * 5000, scorer="exact")).value == 0.0


@pytest.mark.parametrize("answer", HEDGES, ids=range(len(HEDGES)))
async def test_hedges_score_zero(pool: ScoringPool, answer: str) -> None:
    """SCO-06: the file must hold one answer."""
    assert (await score(pool, answer)).value == 0.0


@pytest.mark.parametrize("answer", ["42", r"\boxed{42}", " 42\n", "$42$", "42.0", "+42"])
async def test_honest_answers_score_one(pool: ScoringPool, answer: str) -> None:
    assert (await score(pool, answer)).value == 1.0


async def test_code_is_never_run(pool: ScoringPool, tmp_path: Path) -> None:
    """SCO-07."""
    mark = tmp_path / "PWNED"
    for answer in (
        f"__import__('os').system('touch {mark}')",
        f"exec(\"open('{mark}','w')\")",
        "().__class__.__base__.__subclasses__()",
        f"\\boxed{{__import__('os').system('touch {mark}')}}",
        "lambda: 42",
        "Symbol('x').subs",
        f"open('{mark}','w').close() or 42",
        f"{{x.__init__.__globals__['os'].system('touch {mark}')}}",
    ):
        assert (await score(pool, answer)).value == 0.0
    assert _entries(tmp_path) == []


async def test_rewards_are_finite(pool: ScoringPool) -> None:
    """SCO-08."""
    odd = [
        "nan",
        "NaN",
        "inf",
        "-inf",
        r"\boxed{\infty}",
        r"\boxed{0/0}",
        r"\boxed{\frac{1}{0}}",
        "zoo",
        "oo",
    ]
    for answer in [*odd, r"\boxed{\text{nan}}", "1e400", "-0"]:
        for scorer in ("math", "exact"):
            value = (await score(pool, answer, scorer=scorer)).value
            assert value is not None
            assert math.isfinite(value)
            assert value == 0.0
    assert (await score(pool, "nan", gold="nan", scorer="exact")).value in (0.0, 1.0)


async def test_one_poisoned_row_spoils_no_other(pool: ScoringPool) -> None:
    """SCO-10: a row without a gold answer is masked, one that cannot be read compares as text; a bomb gets 0;
    the neighbours get theirs."""
    rows = [("42", "42"), (r"\boxed{9^{9^{9}}}", "42"), ("42", ""), ("42", "\\frac{"), ("42", "42")]
    rewards = await asyncio.gather(*(score(pool, answer, gold) for answer, gold in rows))
    assert [reward.value for reward in rewards] == [1.0, 0.0, None, 0.0, 1.0]


async def test_bombs_among_good_answers(pool: ScoringPool) -> None:
    """SCO-11: every good one is exact, and the event loop stays free."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            due = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            lags.append(time.monotonic() - due)

    watcher = asyncio.create_task(watch())
    answers = [r"\boxed{100000000!}" if i % 8 == 0 else "42" for i in range(64)]
    started = time.monotonic()
    rewards = await asyncio.gather(*(score(pool, answer) for answer in answers))
    watcher.cancel()
    assert [reward.value for reward in rewards] == [0.0 if i % 8 == 0 else 1.0 for i in range(64)]
    assert not any(reward.parts for reward in rewards), "none was killed, nor anything beside it"
    seconds = time.monotonic() - started
    # Refused at a glance, all of it can be over before the first look at the clock.
    ordered = sorted(lags) or [seconds]
    assert ordered[int(0.99 * len(ordered))] < (1.0 if BESIDE_OTHERS else 0.1)


@pytest.mark.parametrize("status", [s for s in AnswerStatus if s is not AnswerStatus.OK])
async def test_answers_that_are_none_score_zero(pool: ScoringPool, status: AnswerStatus) -> None:
    """IO-16 to IO-21: whatever was found instead of an answer is worth 0, never masked."""
    reward = await pool.score(Task("t", "?", "42", scorer="math"), Answer(status))
    assert reward.value == 0.0
