"""One episode as people read it: its turns, a page of them at a time, and why it was not trained."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sandbox_rl.errors import DataError
from sandbox_rl.journal.reader import places_of, read_events
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.view.lines import json_file
from sandbox_rl.view.opened import OpenRun

TURNS = 40
"""Turns that are sent at once."""
CHARS = 6_000
"""Of a text that are sent at once; the rest when somebody asks."""

_CALL = re.compile(
    r"<tool_call>|<function=|\[TOOL_CALLS\]|<｜tool▁calls?▁begin｜>|<\|python_tag\|>|<\|tool_call>"
    r"|<start_function_call>"
)


def episode(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """The facts of an episode, and the turns from `offset` on.

    Args:
        query: `id`, `offset`.

    Raises:
        DataError: there is none, or its tokens are not what was written.
    """
    row, places = event_pages(run, query.get("id", ""))
    offset = max(0, int(query.get("offset", 0)))
    first, last = read_all(run, row, [places[0], places[-1]])
    turn_places = places[1:] if row["state"] == "live" else places[1:-1]
    events = read_all(run, row, turn_places[offset : offset + TURNS])
    messages = [m for m in last.get("messages", []) if m.get("role") == "assistant"]
    turns = [_turn(run, event, offset + i, messages) for i, event in enumerate(events)]
    changes = json_file(file_of(run.path, row["id"])).get("turns")  # where a replay has written them
    for turn, files in zip(turns, changes[offset:] if isinstance(changes, list) else (), strict=False):
        turn["files"] = files
    answer = last.get("answer") or {}
    prompt = _prompt(run, first, last)
    sibling_rows = run.select(
        "SELECT id, reward, state FROM episodes WHERE siblings = ? ORDER BY id LIMIT 128", [row["siblings"]]
    )
    return {
        "episode": {k: v for k, v in row.items() if k not in ("writer", "last")},
        "why": why_not_trained(run, row),
        "answer": cut(answer.get("text") or ""),
        "answer_status": answer.get("status"),
        "reward_parts": last.get("reward_parts") or {},
        "reward_detail": cut(last.get("reward_detail") or ""),
        "gold": cut(run.golds.answer(row["task_id"])) if run.golds.answer(row["task_id"]) else None,
        "gold_failure": run.golds.failure,
        "prompt": cut(prompt),
        "decoded": run.vocabulary.known or bool(messages),
        "prompt_tokens": len(first["prompt_ids"]),
        "turns": turns,
        "turns_total": len(turn_places),
        "offset": offset,
        "siblings": sibling_rows,
        "flags": run.select("SELECT name, detail FROM flags WHERE episode = ?", [row["id"]]),
    }


def whole_text(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """One text of an episode, uncut.

    Args:
        query: `id`; `what`: prompt, answer, detail; with `turn` raw or thought; with `number` besides call or
            observation.
    """
    row, places = event_pages(run, query.get("id", ""))
    what, number = query.get("what", ""), int(query.get("number", 0))
    if what == "prompt":
        return {"text": _prompt(run, *read_all(run, row, [places[0], places[-1]]))}
    if what in ("answer", "detail"):
        (last,) = read_all(run, row, places[-1:])
        return {"text": last["answer"]["text"] if what == "answer" else last["reward_detail"]}
    try:
        (event,) = read_all(run, row, [places[1:][int(query["turn"])]])
        if what in ("raw", "thought"):
            raw = run.vocabulary.text(event["token_ids"])
            return {"text": raw if what == "raw" else text_before_calls(raw, event["calls"])}
        if what == "call":
            return {"text": _shown_call(run, event, number, whole=True)["text"]}
        return {"text": event["observations"][number]["text"]}
    except (KeyError, IndexError, ValueError):
        raise DataError(f"episode {row['id']!r} has no such text: {dict(query)}") from None


def _prompt(run: OpenRun, first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """What was asked; of an endpoint, which hides the ids, the messages before its first reply."""
    messages = list(itertools.takewhile(lambda m: m.get("role") != "assistant", last.get("messages", [])))
    if messages:
        return "\n\n".join(f"{m.get('role')}: {m.get('content')}" for m in messages)
    return run.vocabulary.text(first["prompt_ids"])


def event_pages(run: OpenRun, id: str) -> tuple[dict[str, Any], Sequence[int]]:
    """An episode's row in the index, and where its events lie in the journal, from its start on.

    Raises:
        DataError: no such episode, or its events cannot be found.
    """
    rows = run.select(
        "SELECT e.*, s.end, s.advantage, s.trained FROM episodes e LEFT JOIN samples s ON s.episode = e.id "
        "WHERE id = ?",
        [id],
    )
    if not rows:
        raise DataError(f"{run.path}: no episode {id!r}; `sandbox-rl show {run.path}` lists them")
    place = rows[0]["writer"], rows[0]["last"]
    try:
        if run.opened is None or run.opened[0] != place:  # a person asks for one episode many times
            run.opened = place, places_of(run.index.directory, *place)
        return rows[0], run.opened[1]
    except (OSError, ValueError) as error:
        raise DataError(f"{run.path}: episode {id!r} cannot be read: {error}") from error


def read_all(run: OpenRun, row: Mapping[str, Any], places: Sequence[int]) -> list[dict[str, Any]]:
    """The events at these places, with their numbers.

    Raises:
        DataError: they are not what was written.
    """
    try:
        return read_events(run.index.directory, row["writer"], places)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run.path}: episode {row['id']!r} cannot be read: {error}") from error


def _turn(
    run: OpenRun, event: Mapping[str, Any], index: int, messages: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    logprobs = event["logprobs"]
    return {
        "index": index,
        "thought": cut(turn_text(run, event, index, messages)),
        "calls": [_shown_call(run, event, number) for number in range(len(event["calls"]))],
        "observations": [{**o, **cut(o["text"])} for o in event["observations"]],
        "sampled": len(event["token_ids"]),
        "observed": len(event["observation_ids"]),
        "generation": event["generation_seconds"],
        "execution": event["execution_seconds"],
        "version": event["weight_version"],
        "switches": event.get("weight_switches", []),
        "finish": event["finish_reason"],
        "logprob": sum(logprobs) / len(logprobs) if logprobs else None,
        "files": None,
    }


def turn_text(
    run: OpenRun, event: Mapping[str, Any], index: int, messages: Sequence[Mapping[str, Any]] = ()
) -> str:
    """What the policy said in a turn beside its calls."""
    if not event["token_ids"] and index < len(messages):
        return str(messages[index].get("content") or "")
    return text_before_calls(run.vocabulary.text(event["token_ids"], control=False), event["calls"])


def text_before_calls(text: str, calls: Sequence[object]) -> str:
    """The text before the first call; all of it where no call was found."""
    found = _CALL.search(text) if calls else None
    return text[: found.start()].strip() if found else text.strip()


def cut(text: str) -> dict[str, Any]:
    """The beginning of a text, and how long it is."""
    return {"text": text[:CHARS], "chars": len(text)}


def _shown_call(
    run: OpenRun, event: Mapping[str, Any], number: int, *, whole: bool = False
) -> dict[str, Any]:
    call = _call(event["calls"][number])
    if call["kind"] == "malformed" and len(event["calls"]) == 1:  # what is wrong with it its observation says
        raw = run.vocabulary.text(event["token_ids"])
        found = _CALL.search(raw)
        call["text"] = raw[found.start() :] if found else call["text"]
    return call if whole else call | cut(call["text"])


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call by what a person wants to see of it: the command, the edit, or its arguments."""
    if "malformed" in call:
        return {"kind": "malformed", "name": "", "text": str(call["malformed"])}
    name, arguments = str(call["name"]), call["arguments"]
    command = arguments.get("command")
    if name == "execute_bash" and isinstance(command, str):
        return {"kind": "bash", "name": name, "text": command}
    texts = ("old_str", "new_str", "file_text")
    lines = [f"{key}: {value}" for key, value in arguments.items() if key not in texts]
    before, new, whole = (str(arguments.get(key) or "") for key in texts)
    after = new or whole
    if name == "str_replace_editor" and (before or after):
        lines += [f"- {line}" for line in before.splitlines()] + [f"+ {line}" for line in after.splitlines()]
        return {"kind": "edit", "name": name, "text": "\n".join(lines)}
    return {"kind": "call", "name": name, "text": "\n".join(lines)}


def file_of(run: Path, episode: str) -> Path:
    """Where an episode's changes of files lie, if a replay has written them: `turns`, each a list of them."""
    return run / "files" / f"{quote(episode, safe='')}.json"


_WHY = {end.value: end.why for end in SampleEnd}


def why_not_trained(run: OpenRun, row: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence, and the records that it is read from.

    Args:
        row: of the episode, with `end`, `advantage` and `trained` of the ledger.
    """
    if row.get("end"):
        sentence = f"{_WHY[row['end']]} Update {row['trained']}."
        return {"end": row["end"], "sentence": sentence, "advantage": row["advantage"]}
    return {"end": None, "sentence": _without_ledger(run, row), "advantage": None}


def _without_ledger(run: OpenRun, row: Mapping[str, Any]) -> str:
    if row["phase"] == "eval" or run.kind == "evaluation":
        return "It measures the policy: episodes of an evaluation are never trained on."
    if row["replaced"]:
        return "The run was resumed from before its update, which was done again with other samples."
    if row["phase"] == "cancelled":
        return SampleEnd.CUT.why
    if row["state"] == "live":
        return "It is under way." if run.state == "running" else "The run ended before it did."
    if row["state"] == "abandoned":
        return "It was cancelled, or failed on our side and was tried again in a fresh sandbox."
    if row["masked"]:
        return SampleEnd.OVERLONG.why
    if row["reward"] is None:
        return SampleEnd.NOT_JUDGED.why
    if (run.path / "ledger.jsonl").exists():
        return "Not decided yet: its update has not finished, or never did."
    return "Not recorded: this run has no ledger."
