"""Running an evaluation so that it can be killed at any instant and gone on with.

An episode is known by its id, which follows from mode, task and sample; so does its seed. It counts once its
end is in the journal and its answer was judged: resuming runs exactly the others. Everything that is reported
is computed from the journal, so a run that was killed and resumed and one that was not are the same thing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.evaluation.plan import EvaluationPlan
from sandbox_rl.evaluation.tool_mix import uses_of
from sandbox_rl.journal import Journal, JournalObserver, read_journal, rollout_from_record
from sandbox_rl.metrics import episode_counts
from sandbox_rl.observer import EachRollout, Observers
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.types import Rollout, Task, ToolCall

CHUNK = 1_000
"""Episodes whose rollouts are in memory at a time; the next chunk starts as they end."""


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """What an evaluation keeps of one episode.

    Args:
        part: line of the results; of a run without parts the task's domain.
        mode: "sandbox" or "plain".
        reward: None when it could not be judged.
        by_fallback: the judge was down and a rule judged.
        counts: what results are means of, by their names there: `metrics.episode_counts`, the `calls` that
            could be parsed, and of them `use/USE`.
    """

    episode_id: str
    task_id: str
    part: str
    mode: str
    reward: float | None
    stop: str
    by_fallback: bool
    counts: Mapping[str, float]


def row_of(rollout: Rollout, *, part: str, mode: str) -> EpisodeRow:
    """The row of a rollout, lost or judged."""
    trajectory, reward = rollout.trajectory, rollout.reward
    calls = [call for turn in trajectory.turns for call in turn.calls if isinstance(call, ToolCall)]
    uses = (use for call in calls for use in uses_of(call.name, call.arguments))
    return EpisodeRow(
        episode_id=trajectory.episode_id,
        task_id=trajectory.task_id,
        part=part,
        mode=mode,
        reward=reward.value,
        stop=trajectory.stop.value,
        by_fallback=bool(reward.parts.get("judge_fallback")),
        counts={**episode_counts(rollout), "calls": len(calls), **Counter(f"use/{use}" for use in uses)},
    )


def _row_of_record(record: Mapping[str, Any]) -> EpisodeRow:
    task = Task(record["task_id"], "", "", domain=record["domain"])
    part, mode = record.get("part") or task.domain, record.get("mode", "sandbox")
    return row_of(rollout_from_record(record, task), part=part, mode=mode)


def read_rows(path: Path) -> dict[str, EpisodeRow]:
    """Episode id → row; of several tries of one episode the last."""
    if not path.is_dir():
        return {}
    return {row.episode_id: row for row in map(_row_of_record, read_journal(path))}


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
        known: what the journal holds already (`read_rows`): what was judged is not run again.
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
