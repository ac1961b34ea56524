"""Episodes in the formats that other tools open: OpenAI's messages, Harbor's trajectories, Inspect's logs.

- `jsonl`: a line for each episode with `messages` as chat endpoints take them.
- `harbor`: a job's directory with a trial for each episode; `agent/trajectory.json` is ATIF 1.4, with the ids
  and log-probs of what was sampled (harborframework.com/docs/trajectory-format).
- `inspect`: one `.eval` log, written by inspect_ai itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from sandbox_rl import __version__
from sandbox_rl.outputs import new_directory, new_files
from sandbox_rl.view.episode import event_pages, read_all, turn_text
from sandbox_rl.view.inspect_log import moment, write_inspect_log
from sandbox_rl.view.opened import OpenRun

__all__ = ["Format", "export_episodes"]

_FRAMES = (
    re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.S),
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.S),
)
"""Messages of a prompt in the frames that are most used; any other is one message of the user's."""

Record = Mapping[str, Any]


class Format(StrEnum):
    """What is written."""

    JSONL = "jsonl"
    HARBOR = "harbor"
    INSPECT = "inspect"


def export_episodes(run: OpenRun, form: Format, target: Path) -> int:
    """Write all episodes that have ended and stand; returns how many.

    Args:
        target: a new file, or a new directory for `harbor`.

    Raises:
        ConfigError: it exists.
        SetupError: inspect_ai is not installed.
    """
    if form is Format.HARBOR:
        with new_directory(target, "--output") as directory:
            return _write_harbor(run, directory)
    with new_files(target.parent, [target.name], "--output") as directory:
        path = directory / target.name
        if form is Format.INSPECT:
            return write_inspect_log(run, _records(run), path)
        count = 0
        with path.open("w", encoding="utf-8") as file:
            for record in _records(run):
                file.write(json.dumps(_line(record)) + "\n")
                count += 1
        return count


def _records(run: OpenRun) -> Iterator[dict[str, Any]]:
    """Each episode: its row of the index, `messages`, and `turns` with their ids."""
    rows = run.select(
        "SELECT id FROM episodes WHERE state = 'ended' AND NOT replaced ORDER BY started, rowid"
    )
    for row in rows:
        about, places = event_pages(run, row["id"])
        events = read_all(run, about, places)
        turns = [event for event in events if event["event"] == "turn"]
        last = events[-1]
        messages = list(last.get("messages") or _messages(run, events[0], turns))
        yield {
            **about,
            "answer": last["answer"]["text"],
            "parts": last["reward_parts"],
            "detail": last["reward_detail"],
            "prompt_ids": events[0]["prompt_ids"],
            "events": turns,
            "messages": messages,
            "texts": [turn_text(run, event, index) for index, event in enumerate(turns)],
        }


def _messages(run: OpenRun, start: Record, turns: Sequence[Record]) -> Iterator[dict[str, Any]]:
    prompt = run.vocabulary.text(start["prompt_ids"])
    framed = next((found for frame in _FRAMES if (found := frame.findall(prompt))), [("user", prompt)])
    for role, content in framed:
        yield {"role": role, "content": content}
    for turn, event in enumerate(turns):
        message: dict[str, Any] = {"role": "assistant", "content": turn_text(run, event, turn)}
        calls = [(number, call) for number, call in enumerate(event["calls"]) if "malformed" not in call]
        if calls:
            message["tool_calls"] = [
                {
                    "id": _call_id(turn, number),
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
                }
                for number, call in calls
            ]
        yield message
        answered = {number for number, _ in calls}
        for number, observation in enumerate(event["observations"]):
            if number in answered:
                yield {"role": "tool", "tool_call_id": _call_id(turn, number), "content": observation["text"]}
            else:
                yield {"role": "user", "content": observation["text"]}


def _call_id(turn: int, number: int) -> str:
    return f"call_{turn}_{number}"


def _line(record: Record) -> dict[str, Any]:
    kept = (
        "id",
        "task_id",
        "domain",
        "phase",
        "step",
        "reward",
        "parts",
        "detail",
        "stop",
        "fault",
        "answer",
    )
    return {name: record[name] for name in (*kept, "end", "advantage", "messages")}


def _write_harbor(run: OpenRun, directory: Path) -> int:
    count, rewards = 0, []
    for record in _records(run):
        trial = directory / re.sub(r"[^\w.-]", "_", record["id"])
        (trial / "agent").mkdir(parents=True)
        (trial / "verifier").mkdir()
        (trial / "agent" / "trajectory.json").write_text(json.dumps(_trajectory(run, record)), "utf-8")
        if record["reward"] is not None:
            (trial / "verifier" / "reward.txt").write_text(f"{record['reward']}\n")
            rewards.append(record["reward"])
        about = {
            "trial_name": trial.name,
            "task_name": record["task_id"],
            "started_at": moment(record["started"]),
            "finished_at": moment(record["ended"]),
            "agent_info": {"name": "sandbox_rl", "version": __version__},
            "verifier_result": None
            if record["reward"] is None
            else {"rewards": {"reward": record["reward"]}},
        }
        (trial / "result.json").write_text(json.dumps(about, indent=1) + "\n")
        count += 1
    mean = sum(rewards) / len(rewards) if rewards else None
    whole = {"job_name": run.name, "n_total_trials": count, "mean_reward": mean}
    (directory / "result.json").write_text(json.dumps(whole, indent=1) + "\n")
    return count


def _trajectory(run: OpenRun, record: Record) -> dict[str, Any]:
    """ATIF 1.4: the messages of the prompt, then a step for each turn with what answered it."""
    steps: list[dict[str, Any]] = []
    for message in record["messages"]:
        if message["role"] not in ("system", "user"):
            break
        steps.append({"source": message["role"], "message": str(message["content"])})
    so_far = list(record["prompt_ids"])
    for turn, event in enumerate(record["events"]):
        step: dict[str, Any] = {"source": "agent", "message": record["texts"][turn]}
        if "time" in event:
            step["timestamp"] = moment(event["time"])
        calls = [(n, c) for n, c in enumerate(event["calls"]) if "malformed" not in c]
        if calls:
            step["tool_calls"] = [
                {"tool_call_id": _call_id(turn, n), "function_name": c["name"], "arguments": c["arguments"]}
                for n, c in calls
            ]
        known = {n for n, _ in calls}
        results = [
            {"source_call_id": _call_id(turn, n) if n in known else None, "content": o["text"]}
            for n, o in enumerate(event["observations"])
        ]
        if results:
            step["observation"] = {"results": results}
        metrics = {"prompt_tokens": len(so_far), "completion_tokens": len(event["token_ids"])}
        ids = {"prompt_token_ids": list(so_far), "completion_token_ids": event["token_ids"]}
        logprobs = {} if event["logprobs"] is None else {"logprobs": event["logprobs"]}
        weights = {name: event[name] for name in ("weight_version", "weight_switches") if name in event}
        step["metrics"] = {**metrics, **ids, **logprobs, "extra": weights}
        steps.append(step)
        so_far += event["token_ids"] + event["observation_ids"]
    kept = ("task_id", "domain", "phase", "step", "reward", "stop", "answer", "end", "advantage")
    return {
        "schema_version": "ATIF-v1.4",
        "session_id": record["id"],
        "agent": {"name": "sandbox_rl", "version": __version__, "model_name": run.model or "unknown"},
        "steps": [{"step_id": number, **step} for number, step in enumerate(steps, 1)],
        "final_metrics": {"total_completion_tokens": record["sampled"], "total_steps": len(steps)},
        "extra": {name: record[name] for name in kept},
    }
