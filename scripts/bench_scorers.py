"""Scoring rate of mathematics, and what bombs among the answers cost the honest ones.

    python scripts/bench_scorers.py [--answers 2000] [--workers 2] [--bombs 16] [--rounds 7]

The answers are a third plain numbers, a third right expressions in another form, a third wrong
expressions; eight answers share a gold answer, as the rollouts of a task do. A bomb computes for ever, in a
scorer of one's own. 256 honest answers that come at once are timed alone, beside one bomb and beside many, in
turn for some rounds; each figure is the median of the rounds, so that other work on the machine meets all
three alike. The 99th percentile may double beside many bombs, and one bomb may delay the last answer by
0.1 s. Workers live in sandboxes, as in a run.
What a worker costs is told first, and last what every start costs: the trials of the rewards of three
sources, 32 tasks each.
Bounds: 400 answers/s on 2 workers, 2 s for the trials. Exit code 1 where one is missed.

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
from statistics import median

import psutil

from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rewards.trial import PROBED, SourceSample, try_rewards
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.types import Answer, AnswerStatus, Task

GROUP = 8
HONEST = 256
MIN_PER_SECOND = 400
MAX_DELAY_S = 0.1
MAX_RATIO = 2.0
MAX_TRIAL_S = 2.0
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
    await nothing_runs()
    return result


async def nothing_runs() -> None:
    """Wait for the last bomb to end: nobody waits for its verdict, but its process has its budget."""
    while True:
        used = processor_seconds()
        await asyncio.sleep(0.25)
        if processor_seconds() - used < 0.05:
            return


async def a_worker() -> tuple[float, int]:
    """Processor seconds and MiB (its share of what is shared) of the worker that a new pool begins with."""
    before = processor_seconds()
    async with ScoringPool(
        ProgramSandboxes(PROGRAM, memory_mb=2048), RewardSettings(), expected=("math", "reasoning_gym")
    ):
        below = psutil.Process().children(recursive=True)
        return processor_seconds() - before, sum(each.memory_full_info().pss for each in below) >> 20


async def trials(pool: ScoringPool) -> float:
    """Seconds that trying the rewards of three sources takes, as before a training run."""
    import reasoning_gym  # not above: this file is a scorer's module as well, and would load it for the bomb

    samples = [
        SourceSample(
            "plain", [Task(f"p{n}", f"What is {n} * 7?", f"{n * 7}", scorer="math") for n in range(PROBED)]
        )
    ]
    for name in ("spell_backward", "basic_arithmetic"):
        entries = reasoning_gym.create_dataset(name, size=PROBED, seed=1)
        tasks = [
            Task(
                f"{name}{n}",
                entry["question"],
                entry["answer"],
                scorer="reasoning_gym",
                metadata={"dataset": name, "entry": dict(entry)},
            )
            for n, entry in enumerate(entries)
        ]
        samples.append(SourceSample(name, tasks))
    started = time.monotonic()
    await try_rewards(pool, samples)
    return time.monotonic() - started


async def measure(options: argparse.Namespace) -> tuple[float, float, list[list[tuple[float, float]]], float]:
    place = ProgramSandboxes(PROGRAM, memory_mb=2048)
    rounds: list[list[tuple[float, float]]] = []
    expected = ("math", "reasoning_gym", BOMB)
    settings = RewardSettings(workers=options.workers, timeout_s=2.0)
    async with ScoringPool(place, settings, expected=expected) as pool:
        await timed(pool, answers(options.answers))  # the second worker starts while these wait
        await nothing_runs()
        used = processor_seconds()
        seconds, _ = await timed(pool, answers(options.answers, start=options.answers))
        used = processor_seconds() - used
        for n in range(options.rounds):
            start = 100_000 + 4 * GROUP * HONEST * n
            bombs = (0, 1, options.bombs)
            rounds.append([await beside_bombs(pool, b, start + HONEST * i) for i, b in enumerate(bombs)])
        tried = await trials(pool)
    return options.answers / seconds, options.answers / used, rounds, tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bombs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))  # where the workers find `bomb`
    used, memory = asyncio.run(a_worker())
    print(f"a worker with reasoning_gym: {used:.1f} s of processor time to start, {memory} MiB")
    rate, per_cpu, rounds, tried = asyncio.run(measure(options))
    seconds = [median(each[kind][0] for each in rounds) for kind in range(3)]
    slowest = [median(each[kind][1] for each in rounds) for kind in range(3)]
    ratios = [each[2][1] / each[0][1] for each in rounds]
    delay, ratio = seconds[1] - seconds[0], median(ratios)
    good = rate >= MIN_PER_SECOND and delay < MAX_DELAY_S and ratio <= MAX_RATIO and tried <= MAX_TRIAL_S
    print(f"{rate:.0f} answers/s on {options.workers} workers (bound {MIN_PER_SECOND})")
    print(
        f"{1000 / per_cpu:.2f} ms of processor time each: {options.workers * per_cpu:.0f} answers/s on "
        f"{options.workers} free processors; load {os.getloadavg()[0]:.1f} on {os.cpu_count()}"
    )
    print(f"{HONEST} answers, medians of {len(rounds)} rounds: {seconds[0]:.3f} s alone")
    print(f"delay by a bomb: {delay * 1000:.0f} ms (bound {MAX_DELAY_S * 1000:.0f} ms)")
    print(f"99th percentile: {slowest[0]:.3f} s alone, {slowest[2]:.3f} s beside {options.bombs} bombs")
    print(f"ratio {ratio:.2f} (bound {MAX_RATIO:g}), of each round " + " ".join(f"{r:.2f}" for r in ratios))
    print(f"trials of the rewards of three sources: {tried:.2f} s (bound {MAX_TRIAL_S:g} s)")
    print("bounds held" if good else "bounds MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
