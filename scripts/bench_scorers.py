"""Scoring rate of mathematics, and what bombs among the answers cost the honest ones.

    python scripts/bench_scorers.py [--answers 2000] [--workers 2] [--bombs 16]

The answers are a third plain numbers, a third right expressions in another form, a third wrong
expressions; eight answers share a gold answer, as the rollouts of a task do. A bomb is a scorer of one's
own that computes for ever. 256 honest answers are timed alone, then while the bombs run: their 99th
percentile may double, and one bomb may delay them by 0.1 s. A bomb before all that has started the slow
lane's worker, which a run does once. Workers live in sandboxes, as in a run.
Bounds: 400 answers/s on 2 workers. Exit code 1 where one is missed.

On a machine with other work the clock says little, so processor seconds are printed too, of this process,
the workers and all that they start: workers times answers over them is the rate where processors are free.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.types import Answer, AnswerStatus, Task

GROUP = 8
HONEST = 256
MIN_PER_SECOND = 400
MAX_DELAY_S = 0.1
MAX_RATIO = 2.0
BOMB = f"{Path(__file__).stem}:bomb"


def bomb(answer: str, task: Task) -> float:
    while True:
        pass


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


def processor_seconds() -> float:
    """Of this process and all below it, those included that have ended and were waited for."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                pid = int(entry.name)
                parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return sum(ticks[pid] for pid in ticks if ours(pid)) / os.sysconf("SC_CLK_TCK")


async def timed(pool: ScoringPool, rows: Sequence[tuple[str, str, float]]) -> tuple[float, float]:
    """(seconds until all are scored, 99th percentile of one's seconds)"""
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
    return seconds, sorted(reward.seconds for reward in rewards)[int(0.99 * len(rewards))]


async def beside_bombs(pool: ScoringPool, bombs: int, start: int) -> tuple[float, float]:
    tasks = [Task(id=f"bomb {n}", prompt="", answer="-", scorer=BOMB) for n in range(bombs)]
    bombing = [asyncio.create_task(pool.score(task, Answer(AnswerStatus.OK, "a"))) for task in tasks]
    await asyncio.sleep(0)
    result = await timed(pool, answers(HONEST, start=start))
    for task in bombing:
        task.cancel()
    await asyncio.gather(*bombing, return_exceptions=True)
    return result


async def measure(count: int, workers: int, bombs: int) -> tuple[float, float, list[tuple[float, float]]]:
    place = ProgramSandboxes(PROGRAM, memory_mb=2048)
    async with ScoringPool(place, workers=workers, expected=("math", BOMB)) as pool:
        await timed(pool, answers(24))
        slow = Task(id="first", prompt="", answer="-", scorer=BOMB)
        await pool.score(slow, Answer(AnswerStatus.OK, "a"))  # the slow lane has started after it
        used = processor_seconds()
        seconds, _ = await timed(pool, answers(count, start=24))
        used = processor_seconds() - used
        alone = await timed(pool, answers(HONEST, start=100_000))
        one = await beside_bombs(pool, 1, 200_000)
        many = await beside_bombs(pool, bombs, 300_000)
    return count / seconds, count / used, [alone, one, many]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bombs", type=int, default=16)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))  # where the workers find `bomb`
    rate, per_cpu, (alone, one, many) = asyncio.run(measure(options.answers, options.workers, options.bombs))
    delay, ratio = one[0] - alone[0], many[1] / alone[1]
    good = rate >= MIN_PER_SECOND and delay < MAX_DELAY_S and ratio <= MAX_RATIO
    print(f"{rate:.0f} answers/s on {options.workers} workers (bound {MIN_PER_SECOND})")
    print(
        f"{1000 / per_cpu:.2f} ms of processor time each: {options.workers * per_cpu:.0f} answers/s on "
        f"{options.workers} free processors; load {os.getloadavg()[0]:.1f} on {os.cpu_count()}"
    )
    print(f"{HONEST} answers: {alone[0]:.3f} s alone, {one[0]:.3f} s beside a bomb")
    print(f"delay by the bomb: {delay * 1000:.0f} ms (bound {MAX_DELAY_S * 1000:.0f} ms)")
    print(f"99th percentile: {alone[1]:.3f} s alone, {many[1]:.3f} s beside {options.bombs} bombs")
    print(f"ratio {ratio:.2f} (bound {MAX_RATIO:g})")
    print("bounds held" if good else "bounds MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
