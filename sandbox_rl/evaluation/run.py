"""Running an evaluation so that it can be killed at any instant and gone on with.

An episode is known by its id, which follows from mode, task and sample; so does its seed. Its journal
line is written when it ends. Resuming runs exactly the episodes that have no judged line yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from sandbox_rl.evaluation.ledger import read_ledger, row_of
from sandbox_rl.evaluation.plan import EvaluationPlan
from sandbox_rl.evaluation.results import Results, results_of
from sandbox_rl.journal import Journal, rollout_record
from sandbox_rl.observer import EachRollout
from sandbox_rl.rollout import EpisodeRequest, RolloutEngine
from sandbox_rl.types import Rollout

__all__ = ["results_of_journal", "run_evaluation"]

CHUNK = 1_000
"""Episodes whose rollouts are in memory at a time; the next chunk starts as they end."""


async def run_evaluation(
    plan: EvaluationPlan,
    engines: Mapping[str, AbstractAsyncContextManager[RolloutEngine]],
    journal_path: Path,
    *,
    on_episode: Callable[[float | None], None] = lambda _: None,
) -> Results:
    """Run what the journal lacks of this process's share, and give the results of all that it holds.

    Args:
        engines: mode → engine; entered only if there is something to run.
        on_episode: called with the reward of every judged episode of the journal, then of every new one.

    Raises:
        InfraFault: every episode of a chunk failed on our side.
        UserError: the machine, the endpoint or the model cannot do it at all.
        OSError: the journal cannot be written.
    """
    index, count = plan.share
    with Journal(journal_path, repair=index == 0) as journal:
        rows = read_ledger(journal_path)
        for row in rows.values():
            if row.reward is not None:
                on_episode(row.reward)
        for mode in plan.modes:
            done = {id for id, row in rows.items() if row.reward is not None}
            mine = plan.requests(mode)[index::count]
            missing = [request for _, request in mine if request.id not in done]
            if not missing:
                continue
            part_of = {request.id: part.name for part, request in mine}

            def keep(
                request: EpisodeRequest,
                rollout: Rollout,
                mode: str = mode,
                part_of: Mapping[str, str] = part_of,
            ) -> None:
                context = {"phase": "eval", "mode": mode, "part": part_of[request.id], "seed": request.seed}
                journal.write(rollout, **context)
                rows[request.id] = row_of(rollout_record(rollout, **context))
                on_episode(rollout.reward.value)

            async with engines[mode] as engine:
                for start in range(0, len(missing), CHUNK):
                    await engine.run(
                        missing[start : start + CHUNK],
                        sampling=plan.sampling,
                        overlong="score",
                        observer=EachRollout(keep),
                    )
                    await asyncio.sleep(0)
    return results_of(rows.values(), plan)


def results_of_journal(plan: EvaluationPlan, journal_path: Path) -> Results:
    """The results of what a journal holds of a plan, whole or not."""
    return results_of(read_ledger(journal_path).values(), plan)
