"""Episodes as a job's directory of Harbor: a trial for each, with its trajectory in ATIF.

What is written is held against the models of `harbor` 0.26.0 by tests/unit/view/test_formats.py, where a
Python with that package is named. The package itself is not needed (it wants Python 3.12).
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sandbox_rl import __version__
from sandbox_rl.view.inspect_log import moment
from sandbox_rl.view.opened import OpenRun

Record = Mapping[str, Any]
AGENT = "sandbox_rl"
SCHEMA = "ATIF-v1.4"
"""Newer versions add nothing that an episode has."""
_IDS = uuid.UUID("6d1c2f0e-7f0b-5c1e-9f39-6a2a6f3c9b11")


def write_harbor_job(run: OpenRun, records: Iterable[Record], directory: Path, target: Path) -> int:
    """Write the records of `formats`; returns how many.

    Args:
        directory: where to write.
        target: where that is going to lie.
    """
    job_id = str(uuid.uuid5(_IDS, str(run.path.resolve())))
    jobs: dict[str, _Stats] = defaultdict(_Stats)
    tasks: dict[str, str] = {}
    times: list[float] = []
    for record in records:
        trial = directory / re.sub(r"[^\w.-]", "_", record["id"])
        (trial / "agent").mkdir(parents=True)
        (trial / "verifier").mkdir()
        (trial / "agent" / "trajectory.json").write_text(json.dumps(_trajectory(run, record)), "utf-8")
        config = {
            "task": {"path": record["task_id"], "source": record["domain"]},
            "trial_name": trial.name,
            "trials_dir": str(target),
            "agent": _agent(run),
            "job_id": job_id,
        }
        _write(trial / "config.json", config)
        _write(trial / "result.json", _result(run, record, trial.name, target, config))
        if record["reward"] is not None:
            (trial / "verifier" / "reward.txt").write_text(f"{record['reward']}\n")
        jobs[f"{AGENT}__{_model(run)}__{record['domain']}"].add(trial.name, record)
        tasks[record["task_id"]] = record["domain"]
        times += [record["started"], record["ended"]]
    started, ended = (moment(when) for when in ((min(times), max(times)) if times else (0.0, 0.0)))
    count = sum(stats.trials for stats in jobs.values())
    whole = {
        "id": job_id,
        "started_at": started,
        "updated_at": ended,
        "finished_at": ended,
        "n_total_trials": count,
        "stats": {
            "n_completed_trials": count,
            "n_errored_trials": sum(stats.errors for stats in jobs.values()),
            "n_input_tokens": sum(stats.read for stats in jobs.values()),
            "n_output_tokens": sum(stats.sampled for stats in jobs.values()),
            "evals": {name: stats.to_json() for name, stats in jobs.items()},
        },
    }
    _write(directory / "result.json", whole)
    about = {
        "job_name": target.name,
        "jobs_dir": str(target.parent),
        "agents": [_agent(run)],
        "tasks": [{"path": task, "source": domain} for task, domain in tasks.items()],
    }
    _write(directory / "config.json", about)
    return count


class _Stats:
    """Of the trials of one domain, as Harbor adds them up."""

    def __init__(self) -> None:
        self.trials = self.errors = self.sampled = self.read = 0
        self._rewards: dict[float, list[str]] = defaultdict(list)
        self._faults: list[str] = []

    def add(self, name: str, record: Record) -> None:
        self.trials += 1
        self.sampled += record["sampled"] or 0
        self.read += _read(record)
        if record["reward"] is None:
            self.errors += 1
            self._faults.append(name)
        else:
            self._rewards[record["reward"]].append(name)

    def to_json(self) -> dict[str, Any]:
        judged = sum(map(len, self._rewards.values()))
        mean = sum(value * len(names) for value, names in self._rewards.items()) / judged if judged else 0.0
        return {
            "n_trials": judged,
            "n_errors": self.errors,
            "metrics": [{"mean": mean}],
            "reward_stats": {"reward": {str(value): names for value, names in self._rewards.items()}},
            "exception_stats": {_NOT_JUDGED: self._faults} if self._faults else {},
        }


_NOT_JUDGED = "NotJudged"


def _result(
    run: OpenRun, record: Record, name: str, target: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    started, ended = moment(record["started"]), moment(record["ended"])
    reward = record["reward"]
    kept = ("domain", "phase", "step", "stop", "end", "advantage", "parts", "detail")
    fault = None
    if reward is None:
        fault = {
            "exception_type": _NOT_JUDGED,
            "exception_message": str(record["fault"] or record["stop"]),
            "exception_traceback": "",
            "occurred_at": ended,
            "policy_override": {"should_grade": False, "has_valid_reward": False},
        }
    return {
        "id": str(uuid.uuid5(_IDS, f"{run.path.resolve()} {record['id']}")),
        "task_name": record["task_id"],
        "trial_name": name,
        "trial_uri": (target.resolve() / name).as_uri(),
        "task_id": {"path": record["task_id"]},
        "source": record["domain"],
        "task_checksum": "",  # Harbor's own digest of a task's directory, which there is none of
        "config": config,
        "agent_info": {
            "name": AGENT,
            "version": __version__,
            "model_info": {"name": _model(run), "provider": None},
        },
        "agent_result": {
            "n_input_tokens": _read(record),
            "n_output_tokens": record["sampled"],
            "metadata": {name: record[name] for name in kept},
        },
        "verifier_result": None if reward is None else {"rewards": {"reward": reward}},
        "exception_info": fault,
        "started_at": started,
        "finished_at": ended,
        "agent_execution": {"started_at": started, "finished_at": ended},
    }


def _read(record: Record) -> int:
    """Prompt tokens, all that stands before each turn counted again, as Harbor counts them."""
    before, total = len(record["prompt_ids"]), 0
    for event in record["events"]:
        total += before
        before += len(event["token_ids"]) + len(event["observation_ids"])
    return total


def call_id(turn: int, number: int) -> str:
    """Names a call within its episode."""
    return f"call_{turn}_{number}"


def _agent(run: OpenRun) -> dict[str, Any]:
    return {"name": AGENT, "model_name": _model(run)}


def _model(run: OpenRun) -> str:
    return run.model or "unknown"


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def _trajectory(run: OpenRun, record: Record) -> dict[str, Any]:
    """The messages of the prompt, then a step for each turn with what answered it."""
    steps: list[dict[str, Any]] = []
    for message in record["messages"]:
        if message["role"] not in ("system", "user"):
            break
        steps.append({"source": message["role"], "message": str(message["content"])})
    so_far = list(record["prompt_ids"])
    for turn, event in enumerate(record["events"]):
        steps.append(_step(record["texts"][turn], turn, event, so_far))
        so_far += event["token_ids"] + event["observation_ids"]
    kept = ("task_id", "domain", "phase", "step", "reward", "stop", "answer", "end", "advantage")
    return {
        "schema_version": SCHEMA,
        "session_id": record["id"],
        "agent": {"name": AGENT, "version": __version__, "model_name": _model(run)},
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, 1)],
        "final_metrics": {
            "total_prompt_tokens": _read(record),
            "total_completion_tokens": record["sampled"],
            "total_steps": len(steps),
        },
        "extra": {name: record[name] for name in kept},
    }


def _step(text: str, turn: int, event: Record, so_far: list[int]) -> dict[str, Any]:
    step: dict[str, Any] = {"source": "agent", "message": text}
    if "time" in event:
        step["timestamp"] = moment(event["time"])
    calls = [(n, c) for n, c in enumerate(event["calls"]) if "malformed" not in c]
    if calls:
        step["tool_calls"] = [
            {"tool_call_id": call_id(turn, n), "function_name": c["name"], "arguments": c["arguments"]}
            for n, c in calls
        ]
    known = {n for n, _ in calls}
    results = [
        {"source_call_id": call_id(turn, n) if n in known else None, "content": o["text"]}
        for n, o in enumerate(event["observations"])
    ]
    if results:
        step["observation"] = {"results": results}
    metrics = {"prompt_tokens": len(so_far), "completion_tokens": len(event["token_ids"])}
    ids = {"prompt_token_ids": list(so_far), "completion_token_ids": event["token_ids"]}
    logprobs = {} if event["logprobs"] is None else {"logprobs": event["logprobs"]}
    weights = {name: event[name] for name in ("weight_version", "weight_switches") if name in event}
    step["metrics"] = {**metrics, **ids, **logprobs, "extra": weights}
    return step
