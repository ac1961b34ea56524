"""Episodes as a log of Inspect, written by its own library, which is optional."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox_rl.errors import SetupError
from sandbox_rl.view.opened import OpenRun

__all__ = ["moment", "write_inspect_log"]


def moment(seconds: float) -> str:
    """Unix seconds as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def write_inspect_log(run: OpenRun, records: Iterator[dict[str, Any]], path: Path) -> int:
    """Write the records of `formats` as one `.eval` log; returns how many.

    Raises:
        SetupError: inspect_ai is not installed.
    """
    try:
        from inspect_ai.log import (
            EvalConfig,
            EvalDataset,
            EvalLog,
            EvalMetric,
            EvalResults,
            EvalSample,
            EvalScore,
            EvalSpec,
            EvalStats,
            write_eval_log,
        )
        from inspect_ai.model import ModelOutput, ModelUsage
        from inspect_ai.scorer import Score
        from pydantic import TypeAdapter
    except ImportError as error:
        raise SetupError(
            f"--format inspect: {error.name} is not installed; pip install inspect_ai, or choose jsonl or "
            "harbor"
        ) from error
    from inspect_ai.model import ChatMessage

    adapter: Any = TypeAdapter(list[ChatMessage])
    samples, rewards, times, model = [], [], [], run.model or "none/none"
    for epoch_of, record in _with_epochs(records):
        messages = adapter.validate_python([_inspect_message(m) for m in record["messages"]])
        judged = record["reward"] is not None
        rewards += [record["reward"]] if judged else []
        about = {n: record[n] for n in ("id", "domain", "phase", "step", "stop", "end", "advantage")}
        explanation = str(record["detail"])
        score = Score(
            value=record["reward"] if judged else "N", answer=record["answer"], explanation=explanation
        )
        times += [record["started"], record["ended"]]
        took, tokens = record["ended"] - record["started"], int(record["sampled"] or 0)
        usage = ModelUsage(output_tokens=tokens, total_tokens=tokens)
        samples.append(
            EvalSample(
                id=record["task_id"],
                epoch=epoch_of,
                input=next((str(m["content"]) for m in record["messages"] if m["role"] == "user"), ""),
                target="",
                messages=messages,
                output=ModelOutput.from_content(model, record["answer"]),
                model_usage={model: usage},
                started_at=moment(record["started"]),
                completed_at=moment(record["ended"]),
                total_time=took,
                working_time=took,
                scores={"reward": score},
                metadata=about,
            )
        )
    started, completed = (moment(when) for when in ((min(times), max(times)) if times else (0.0, 0.0)))
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    spec = EvalSpec(
        created=started,
        task=run.name,
        dataset=EvalDataset(name=run.name, samples=len(samples)),
        model=model,
        config=EvalConfig(),
    )
    results = EvalResults(
        total_samples=len(samples),
        completed_samples=len(samples),
        scores=[
            EvalScore(name="reward", scorer="reward", metrics={"mean": EvalMetric(name="mean", value=mean)})
        ],
    )
    stats = EvalStats(started_at=started, completed_at=completed)
    log = EvalLog(status="success", eval=spec, results=results, stats=stats, samples=samples)
    write_eval_log(log, str(path), format="eval")
    return len(samples)


def _with_epochs(records: Iterator[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Inspect knows a sample by its task and epoch: attempts at a task are numbered from 1."""
    seen: dict[str, int] = {}
    for record in records:
        seen[record["task_id"]] = seen.get(record["task_id"], 0) + 1
        yield seen[record["task_id"]], record


def _inspect_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as Inspect has it: calls with a function and its arguments."""
    out = dict(message)
    if out.get("tool_calls"):
        out["tool_calls"] = [
            {
                "id": call["id"],
                "function": call["function"]["name"],
                "arguments": json.loads(call["function"]["arguments"]),
                "type": "function",
            }
            for call in out["tool_calls"]
        ]
    return out
