"""Episodes in the formats that other tools open: OpenAI's messages, Harbor's trajectories, Inspect's logs.

- `jsonl`: a line for each episode with `messages` as chat endpoints take them.
- `harbor`: a job's directory with a trial for each episode; `agent/trajectory.json` is ATIF, with the ids and
  log-probs of what was sampled (harborframework.com/docs/trajectory-format).
- `inspect`: one `.eval` log, written by inspect_ai itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandbox_rl.outputs import new_directory, new_files
from sandbox_rl.view import Format
from sandbox_rl.view.episode import event_pages, read_all, turn_text
from sandbox_rl.view.harbor_job import call_id, write_harbor_job
from sandbox_rl.view.inspect_log import write_inspect_log
from sandbox_rl.view.opened import OpenRun

_FRAMES = (
    re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.S),
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.S),
)
"""Messages of a prompt in the frames that are most used; any other is one message of the user's."""

Record = Mapping[str, Any]


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
            return write_harbor_job(run, _records(run), directory, target)
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
                    "id": call_id(turn, number),
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
                }
                for number, call in calls
            ]
        yield message
        answered = {number for number, _ in calls}
        for number, observation in enumerate(event["observations"]):
            if number in answered:
                yield {"role": "tool", "tool_call_id": call_id(turn, number), "content": observation["text"]}
            else:
                yield {"role": "user", "content": observation["text"]}


def _line(record: Record) -> dict[str, Any]:
    kept = ("id", "task_id", "domain", "phase", "step", "reward", "parts", "detail", "stop", "fault")
    return {name: record[name] for name in (*kept, "answer", "end", "advantage", "messages")}
