"""The journal as a ledger: an episode counts once its end is in it and its answer was judged.

Everything that an evaluation reports is computed from it, so a run that was killed and resumed
and one that was not are the same thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox_rl.evaluation.tool_mix import Use, uses_of
from sandbox_rl.journal import read_journal
from sandbox_rl.metrics import known_tool

__all__ = ["EpisodeRow", "read_ledger", "row_of"]


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """What an evaluation keeps of one episode.

    Args:
        part: line of the results; of a run without parts the task's domain.
        mode: "sandbox" or "plain".
        reward: None when it could not be judged.
        sampled, observed, prompt: tokens; of an endpoint they are those that it reports, else 0.
        scoring: seconds.
        calls: tool calls that could be parsed; `tools` counts them by name, `uses` by what they were for.
        failures: observations that told of a failure, by its kind.
        by_fallback: the judge was down and a rule judged.
    """

    episode_id: str
    task_id: str
    part: str
    mode: str
    reward: float | None
    stop: str
    fault: str
    turns: int
    prompt: int
    sampled: int
    observed: int
    seconds: float
    generation: float
    execution: float
    scoring: float
    calls: int
    by_fallback: bool = False
    uses: Mapping[Use, int] = field(default_factory=dict)
    tools: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)


def row_of(record: Mapping[str, Any]) -> EpisodeRow:
    """The row of a record of the journal; `usage` in it stands for ids that an endpoint hides."""
    turns = record["turns"]
    calls = [call for turn in turns for call in turn["calls"] if "malformed" not in call]
    uses = Counter(use for call in calls for use in uses_of(call["name"], call["arguments"]))
    usage = record.get("usage") or {
        "prompt": len(record["prompt_ids"]),
        "sampled": sum(len(turn["token_ids"]) for turn in turns),
        "observed": sum(len(turn["observation_ids"]) for turn in turns),
    }
    return EpisodeRow(
        episode_id=record["episode_id"],
        task_id=record["task_id"],
        part=record.get("part") or record["domain"],
        mode=record.get("mode", "sandbox"),
        reward=record["reward"],
        stop=record["stop"],
        fault=record["fault"],
        turns=len(turns),
        prompt=usage["prompt"],
        sampled=usage["sampled"],
        observed=usage["observed"],
        seconds=record["seconds"],
        generation=sum(turn["generation_seconds"] for turn in turns),
        execution=sum(turn["execution_seconds"] for turn in turns),
        scoring=record["scoring_seconds"],
        calls=len(calls),
        by_fallback=bool(record["reward_parts"].get("judge_fallback")),
        uses=dict(uses),
        tools=dict(Counter(known_tool(call["name"]) for call in calls)),
        failures=dict(Counter(o["failure"] for turn in turns for o in turn["observations"] if o["failure"])),
    )


def read_ledger(path: Path) -> dict[str, EpisodeRow]:
    """Episode id → row; of several tries of one episode the last."""
    if not path.is_dir():
        return {}
    return {row.episode_id: row for row in map(row_of, read_journal(path))}
