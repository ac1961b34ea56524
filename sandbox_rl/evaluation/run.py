"""Running an evaluation so that it can be killed at any instant and gone on with.

An episode is known by its id, which follows from mode, task and sample; so does its seed. Resuming runs
exactly the episodes of which the journal holds no judged end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from sandbox_rl.evaluation.ledger import EpisodeRow, read_ledger, row_of
from sandbox_rl.evaluation.plan import EvaluationPlan
from sandbox_rl.evaluation.results import Results, results_of
from sandbox_rl.journal import Journal, JournalObserver
from sandbox_rl.observer import EachRollout, Observers
from sandbox_rl.rollout import EpisodeRequest, RolloutEngine
from sandbox_rl.types import Rollout

CHUNK = 1_000
"""Episodes whose rollouts are in memory at a time; the next chunk starts as they end."""


async def run_evaluation(
    plan: EvaluationPlan,
    engines: Mapping[str, AbstractAsyncContextManager[RolloutEngine]],
    journal: Journal,
    *,
    known: Mapping[str, EpisodeRow] | None = None,
    on_episode: Callable[[EpisodeRow, Rollout], None] = lambda row, rollout: None,
    **context: Any,
) -> None:
    """Run this process's share of a plan, and write it to the journal.

    Args:
        engines: mode → engine; entered only if there is something to run.
        known: what the journal holds already (`read_ledger`): what was judged is not run again.
        on_episode: called in the event loop with every episode as it is in the journal; must not block.
        context: more fields of each episode in the journal.

    Raises:
        InfraFault: every episode of a chunk failed on our side.
        UserError: the machine, the endpoint or the model cannot do it at all.
        OSError: the journal cannot be written.
    """
    done = {id for id, row in (known or {}).items() if row.reward is not None}
    for mode in plan.modes:
        missing = [(part, request) for part, request in plan.own_requests(mode) if request.id not in done]
        if not missing:
            continue
        part_of = {request.id: part.name for part, request in missing}

        def fields(
            request: EpisodeRequest, mode: str = mode, part_of: Mapping[str, str] = part_of
        ) -> dict[str, Any]:
            return {"phase": "eval", **context, "mode": mode, "part": part_of[request.id]}

        def ended(
            request: EpisodeRequest, rollout: Rollout, mode: str = mode, part_of: Mapping[str, str] = part_of
        ) -> None:
            on_episode(row_of(rollout, part=part_of[request.id], mode=mode), rollout)

        async with engines[mode] as engine:
            for start in range(0, len(missing), CHUNK):
                await engine.run(
                    [request for _, request in missing[start : start + CHUNK]],
                    sampling=plan.sampling,
                    overlong="score",
                    observer=Observers(JournalObserver(journal, fields), EachRollout(ended)),
                )
                await asyncio.sleep(0)


def results_of_journal(plan: EvaluationPlan, journal: Path) -> Results:
    """The results of what a journal holds of a plan, whole or not."""
    return results_of(read_ledger(journal).values(), plan)
