"""Episodes as a log of Inspect, written by its own library, which is optional."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox_rl.errors import SetupError
from sandbox_rl.view.opened import OpenRun


def moment(seconds: float) -> str:
    """Unix seconds as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def write_inspect_log(run: OpenRun, records: Iterator[dict[str, Any]], path: Path) -> int:
    """Write the records of `formats` as one `.eval` log; returns how many.

    Raises:
        SetupError: inspect_ai is not installed.
    """
    try:
        from inspect_ai import log
        from inspect_ai.log import EvalMetric, EvalScore
    except ImportError as error:
        raise SetupError(
            f"--format inspect: {error.name} is not installed; pip install inspect_ai, or choose jsonl or "
            "harbor"
        ) from error

    model = run.model or "none/none"
    samples, rewards, times = [], [], []
    for epoch, record in _with_epochs(records):
        samples.append(_sample(record, epoch, model))
        rewards += [record["reward"]] if record["reward"] is not None else []
        times += [record["started"], record["ended"]]
    started, completed = (moment(when) for when in ((min(times), max(times)) if times else (0.0, 0.0)))
    mean = EvalMetric(name="mean", value=sum(rewards) / len(rewards) if rewards else 0.0)
    spec = log.EvalSpec(
        created=started,
        task=run.name,
        dataset=log.EvalDataset(name=run.name, samples=len(samples)),
        model=model,
        config=log.EvalConfig(),
    )
    results = log.EvalResults(
        total_samples=len(samples),
        completed_samples=len(samples),
        scores=[EvalScore(name="reward", scorer="reward", metrics={"mean": mean})],
    )
    stats = log.EvalStats(started_at=started, completed_at=completed)
    whole = log.EvalLog(status="success", eval=spec, results=results, stats=stats, samples=samples)
    log.write_eval_log(whole, str(path), format="eval")
    return len(samples)


def _sample(record: Mapping[str, Any], epoch: int, model: str) -> Any:
    """An episode as one of Inspect's samples."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessage, ModelOutput, ModelUsage
    from inspect_ai.scorer import Score
    from pydantic import TypeAdapter

    adapter: Any = TypeAdapter(list[ChatMessage])
    messages = record["messages"]
    reward = "N" if record["reward"] is None else record["reward"]
    took, tokens = record["ended"] - record["started"], int(record["sampled"] or 0)
    return EvalSample(
        id=record["task_id"],
        epoch=epoch,
        input=next((str(m["content"]) for m in messages if m["role"] == "user"), ""),
        target="",
        messages=adapter.validate_python([_inspect_message(m) for m in messages]),
        output=ModelOutput.from_content(model, record["answer"]),
        model_usage={model: ModelUsage(output_tokens=tokens, total_tokens=tokens)},
        started_at=moment(record["started"]),
        completed_at=moment(record["ended"]),
        total_time=took,
        working_time=took,
        scores={"reward": Score(value=reward, answer=record["answer"], explanation=str(record["detail"]))},
        metadata={n: record[n] for n in ("id", "domain", "phase", "step", "stop", "end", "advantage")},
    )


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
