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
from sandbox_rl.journal import read_journal
from sandbox_rl.metrics import known_tool


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """What an evaluation keeps of one episode.

    Args:
        part: line of the results; of a run without parts the task's domain.
        mode: "sandbox" or "plain".
        reward: None when it could not be judged.
        by_fallback: the judge was down and a rule judged.
        counts: what results are means of, by their names there: `turns`; `calls` that could be parsed, and of
            them `calls/TOOL` and `use/USE`; observations that told of `failures/KIND`; `tokens/prompt`,
            `tokens/sampled` and `tokens/observed`, of an endpoint those that it reports; `seconds/*`.
    """

    episode_id: str
    task_id: str
    part: str
    mode: str
    reward: float | None
    stop: str
    by_fallback: bool
    counts: Mapping[str, float]


def row_of(record: Mapping[str, Any]) -> EpisodeRow:
    """The row of a record of the journal; `usage` in it stands for ids that an endpoint hides."""
    turns = record["turns"]
    calls = [call for turn in turns for call in turn["calls"] if "malformed" not in call]
    usage = record.get("usage") or {
        "prompt": len(record["prompt_ids"]),
        "sampled": sum(len(turn["token_ids"]) for turn in turns),
        "observed": sum(len(turn["observation_ids"]) for turn in turns),
    }
    generation = sum(turn["generation_seconds"] for turn in turns)
    execution = sum(turn["execution_seconds"] for turn in turns)
    failures = (o["failure"] for turn in turns for o in turn["observations"] if o["failure"])
    return EpisodeRow(
        episode_id=record["episode_id"],
        task_id=record["task_id"],
        part=record.get("part") or record["domain"],
        mode=record.get("mode", "sandbox"),
        reward=record["reward"],
        stop=record["stop"],
        by_fallback=bool(record["reward_parts"].get("judge_fallback")),
        counts={
            "turns": len(turns),
            "calls": len(calls),
            **{f"tokens/{name}": usage[name] for name in ("prompt", "sampled", "observed")},
            "seconds/episode": record["seconds"],
            "seconds/generation": generation,
            "seconds/execution": execution,
            "seconds/scoring": record["scoring_seconds"],
            "seconds/waiting": max(0.0, record["seconds"] - generation - execution),
            **Counter(f"calls/{known_tool(call['name'])}" for call in calls),
            **Counter(f"failures/{kind}" for kind in failures),
            **Counter(f"use/{use}" for call in calls for use in uses_of(call["name"], call["arguments"])),
        },
    )


def read_ledger(path: Path) -> dict[str, EpisodeRow]:
    """Episode id → row; of several tries of one episode the last."""
    if not path.is_dir():
        return {}
    return {row.episode_id: row for row in map(row_of, read_journal(path))}
