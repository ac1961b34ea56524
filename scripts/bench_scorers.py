"""Scoring rate of mathematics, and what one bomb among 64 answers costs the others.

    python scripts/bench_scorers.py [--answers 2000] [--workers 2]

The answers are a third plain numbers, a third right expressions in another form, a third wrong
expressions; eight answers share a gold answer, as the rollouts of a task do. The bomb is a scorer that
never returns, so it holds its worker for the whole time limit.
"Beyond their own time": the others are also timed on one worker fewer without a bomb, since a bomb
takes a worker away. Bounds: 300 answers/s on 2 workers, delay under 0.1 s. Exit code 1 where missed.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.types import Answer, AnswerStatus, Task

GROUP = 8
MIN_PER_SECOND = 300
MAX_DELAY_S = 0.1


def bomb(answer: str, task: Task) -> float:
    time.sleep(3600)
    return 1.0


def answers(count: int, start: int = 0) -> list[tuple[str, str, float]]:
    """(answer, gold, expected reward)"""
    rows = []
    for n in range(start, start + count):
        task, sample = divmod(n, GROUP)
        match task % 3:
            case 0:
                rows.append((f"\\boxed{{{task}}}", f"{task}", 1.0))
            case 1:
                above, below = task * (sample + 1), 2 * (sample + 1)
                rows.append((f"\\frac{{{above}\\sqrt{{3}}}}{{{below}}}", f"{task}*sqrt(3)/2", 1.0))
            case _:
                rows.append((f"x^2+{task}x+{sample + 3}", f"x^2+{task}x+2", 0.0))
    return rows


async def timed(pool: ScoringPool, rows: Sequence[tuple[str, str, float]]) -> float:
    start = time.monotonic()
    rewards = await asyncio.gather(
        *(
            pool.score(Task(id=str(n), prompt="", answer=gold, scorer="math"), Answer(AnswerStatus.OK, text))
            for n, (text, gold, _) in enumerate(rows)
        )
    )
    seconds = time.monotonic() - start
    wrong = [row for row, reward in zip(rows, rewards, strict=True) if reward.value != row[2]]
    if wrong:
        raise SystemExit(f"{len(wrong)} answers were scored wrong; the first: {wrong[0]}")
    return seconds


async def measure(count: int, workers: int) -> tuple[float, float, float]:
    async with ScoringPool(workers=workers) as pool:
        await timed(pool, answers(24))  # the first expressions of a process load parts of sympy
        rate = count / await timed(pool, answers(count, start=24))
        task = Task(id="bomb", prompt="", answer="-", scorer=f"{Path(__file__).stem}:bomb")
        bombing = asyncio.create_task(pool.score(task, Answer(AnswerStatus.OK, "a")))
        await asyncio.sleep(0)
        with_bomb = await timed(pool, answers(63, start=100_000))
        assert (await bombing).value is None
    async with ScoringPool(workers=max(1, workers - 1)) as pool:
        await timed(pool, answers(24))
        alone = await timed(pool, answers(63, start=100_000))
    return rate, alone, with_bomb


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))  # where the workers find `bomb`
    rate, alone, with_bomb = asyncio.run(measure(options.answers, options.workers))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    good = rate >= MIN_PER_SECOND and with_bomb - alone < MAX_DELAY_S
    print(f"{rate:.0f} answers/s on {options.workers} workers (bound {MIN_PER_SECOND})")
    print(f"processor time of all workers, their start included: {used.ru_utime + used.ru_stime:.1f} s")
    print(f"63 answers: {alone:.3f} s on one worker fewer, {with_bomb:.3f} s beside a bomb")
    print(f"delay by the bomb: {(with_bomb - alone) * 1000:.0f} ms (bound {MAX_DELAY_S * 1000:.0f} ms)")
    print("bounds held" if good else "bounds MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
