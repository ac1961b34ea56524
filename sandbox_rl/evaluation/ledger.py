"""The journal as a ledger: an episode counts once its end is in it and its answer was judged.

Everything that an evaluation reports is computed from it, so a run that was killed and resumed
and one that was not are the same thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.evaluation.tool_mix import uses_of
from sandbox_rl.journal import read_journal, rollout_from_record
from sandbox_rl.metrics import episode_counts
from sandbox_rl.types import Rollout, Task, ToolCall


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


def read_ledger(path: Path) -> dict[str, EpisodeRow]:
    """Episode id → row; of several tries of one episode the last."""
    if not path.is_dir():
        return {}
    return {row.episode_id: row for row in map(_row_of_record, read_journal(path))}
