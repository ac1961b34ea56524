"""A child process that evaluates a scripted policy: python -m tests.unit.evaluation.scripted_run JOURNAL.

Task i is answered rightly in its sample s if (i + s) is divisible by three. To be killed at any instant.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sandbox_rl.evaluation.plan import EvaluationPlan, parts_by_domain
from sandbox_rl.evaluation.results import Results, results_of_journal
from sandbox_rl.evaluation.run import read_rows, run_evaluation
from sandbox_rl.journal import Journal
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.types import Task
from tests.unit.rig import SUBMIT, make_engine, say, write

TASKS, SAMPLES = 120, 4
RIGHT, WRONG = say(write("42")), say(write("41"))
DONE = say(SUBMIT)


def is_right(index: int, sample: int) -> bool:
    return (index + sample) % 3 == 0


def script(episode_id: str, turn: int, ids: object) -> tuple[int, ...]:
    _, index, sample = episode_id.rsplit("-", 2)
    return DONE if turn else (RIGHT if is_right(int(index), int(sample)) else WRONG)


def plan() -> EvaluationPlan:
    tasks = [Task(f"t{index}", "What is 6*7?", "42", domain=f"d{index % 2}") for index in range(TASKS)]
    parts = parts_by_domain(tasks, SAMPLES)
    return EvaluationPlan("kill", "scripted", parts, ("sandbox",), 7, Sampling())


async def measured(plan, engine, path, on_episode=lambda row, rollout: None) -> Results:
    """As `sandbox-rl eval` does it: run what the journal lacks, and read it."""
    with Journal(path) as journal:
        known = read_rows(path)
        await run_evaluation(plan, {"sandbox": engine}, journal, known=known, on_episode=on_episode)
    return results_of_journal(plan, path)


def main(journal: Path, delay_s: float) -> None:
    engine = make_engine(ScriptedPolicy(script, delay_s=delay_s), rollout={"concurrency": 16})
    results = asyncio.run(measured(plan(), engine, journal))
    mode = results.modes["sandbox"]
    print(mode.episodes, mode.accuracy.value if mode.accuracy else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
