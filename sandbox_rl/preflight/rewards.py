"""Can the scorers work, can every gold answer be scored, and can a reward be bought?"""

from __future__ import annotations

import asyncio
import threading
from itertools import takewhile
from pathlib import Path

from sandbox_rl.builders import build_scoring
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import DataError
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rewards.trial import PROBED, GoldReport, SourceSample, check_golds, try_rewards
from sandbox_rl.tasks.load import TaskSet
from sandbox_rl.types import Answer, AnswerStatus, Task

GOLD_SHOWN = 200
"""Characters of a gold answer that are shown."""


async def check_rewards(
    recipe: Recipe, base_dir: Path, tasks: TaskSet, *, shown: Task | None = None
) -> list[str]:
    """Try the scorers before anything that takes long; returns what a person should know, one line each.

    Args:
        shown: one whose gold answer is scored for a person to see, in the last line.

    Raises:
        UserError: no scorer can use a gold answer, a scorer cannot work, or its reward can be bought.
    """
    async with build_scoring(recipe, base_dir) as scoring:
        notes = [
            f"warning: {warning}" for warning in await try_rewards(scoring, reward_samples(recipe, tasks))
        ]
        golds = await check_gold(recipe, tasks, scoring)
        notes += [f"gold answers: {golds}"] if golds.as_text else []
        return notes if shown is None else [*notes, await _scored(scoring, shown)]


async def _scored(scoring: ScoringPool, task: Task) -> str:
    """What the gold answer of a task earns, and by whom."""
    reward = await scoring.score(task, Answer(AnswerStatus.OK, task.answer))
    text = task.answer if len(task.answer) <= GOLD_SHOWN else f"{task.answer[:GOLD_SHOWN]}…"
    names = ", ".join(scoring.rules_of(task)) or ("a judge" if scoring.needs_judge(task) else task.scorer)
    earned = f"not judged ({reward.detail})" if reward.value is None else f"reward {reward.value:g}"
    return f"its gold answer {text!r} → {earned}, by {names}"


def reward_samples(recipe: Recipe, tasks: TaskSet) -> list[SourceSample]:
    """Some tasks of every source, on which its scorers are tried before training."""
    settings = recipe.data.sources
    return [
        SourceSample(
            tasks.source_name(number),
            sample,
            gold_is_answer=settings[number].gold_is_answer,
            accept_degenerate=settings[number].accept_degenerate,
        )
        for number, sample in tasks.of_each_source(PROBED).items()
    ]


async def check_gold(recipe: Recipe, tasks: TaskSet, scoring: ScoringPool) -> GoldReport:
    """Look at the gold answer of every task.

    Raises:
        DataError: no scorer can use one of them. Those that are compared as text are sound.
    """
    reward = recipe.reward
    names = (reward.scorer,) if reward.scorer is not None else tuple(reward.composite)
    left = threading.Event()  # whoever interrupts does not wait for hundreds of thousands of rows
    try:
        report = await asyncio.to_thread(check_golds, takewhile(lambda _: not left.is_set(), tasks), names)
    finally:
        left.set()
    bad = {**report.bad, **await scoring.check_gold([tasks[place] for place in report.in_workers])}
    if bad:
        first, reason = next(iter(bad.items()))
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataError(
            f"data: the gold answer of task {first!r} cannot be scored: {reason}{more}; fix the row"
        )
    return report
