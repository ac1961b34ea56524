"""`episodes.jsonl`: every episode of a run, whole, one line each, appended and never rewritten.

A line is written by one `write` to a descriptor in append mode, under a lock, so that several processes can
share the file. A kill at any instant tears at most the line that is being written: at the end of the file the
next opening cuts it off; where another process writes on, it stays as a line of its own, which readers skip.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    ChatRecord,
    MalformedCall,
    Observation,
    Rollout,
    StopReason,
    ToolCall,
    ToolFailure,
    Trajectory,
    Turn,
    TurnTiming,
)

__all__ = ["Journal", "read_journal", "rollout_record", "trajectory_from_record"]


LOCK_TIMEOUT_S = 10.0


def rollout_record(rollout: Rollout, **context: Any) -> dict[str, Any]:
    """A rollout as JSON values: every token, log-prob, call, observation, timing and reward.

    Args:
        context: more fields of the line, such as the step or the phase.
    """
    t = rollout.trajectory
    return {
        **context,
        "episode_id": t.episode_id,
        "task_id": t.task_id,
        "domain": rollout.task.domain,
        "stop": t.stop.value,
        "fault": t.fault,
        "reward": rollout.reward.value,
        "reward_parts": dict(rollout.reward.parts),
        "reward_detail": rollout.reward.detail,
        "scoring_seconds": rollout.reward.seconds,
        "answer": {"status": t.answer.status.value, "text": t.answer.text},
        "seconds": t.seconds,
        "prompt_ids": list(t.prompt_ids),
        "turns": [_turn_record(turn) for turn in t.turns],
    } | (_chat_record(t.chat) if t.chat is not None else {})


def _chat_record(chat: ChatRecord) -> dict[str, Any]:
    return {"messages": list(chat.messages), "usage": dict(chat.usage)}


def _turn_record(turn: Turn) -> dict[str, Any]:
    action = turn.action
    return {
        "token_ids": list(action.token_ids),
        "logprobs": None if action.logprobs is None else list(action.logprobs),
        "finish_reason": action.finish_reason,
        "weight_version": action.weight_version,
        "calls": [
            {"malformed": call.reason}
            if isinstance(call, MalformedCall)
            else {"name": call.name, "arguments": dict(call.arguments)}
            for call in turn.calls
        ],
        "observations": [
            {
                "tool": o.tool,
                "text": o.text,
                "failure": o.failure.value if o.failure else None,
                "submitted": o.submitted,
                "exit_code": o.exit_code,
                "seconds": o.seconds,
            }
            for o in turn.observations
        ],
        "observation_ids": list(turn.observation_ids),
        "generation_seconds": turn.timing.generation,
        "execution_seconds": turn.timing.execution,
    }


def trajectory_from_record(record: Mapping[str, Any]) -> Trajectory:
    """The trajectory of a line of `episodes.jsonl`, equal to the one that was written."""
    return Trajectory(
        task_id=record["task_id"],
        prompt_ids=tuple(record["prompt_ids"]),
        turns=tuple(
            Turn(
                action=Action(
                    tuple(turn["token_ids"]),
                    None if turn["logprobs"] is None else tuple(turn["logprobs"]),
                    turn["finish_reason"],
                    turn["weight_version"],
                ),
                calls=tuple(
                    MalformedCall(call["malformed"])
                    if "malformed" in call
                    else ToolCall(call["name"], call["arguments"])
                    for call in turn["calls"]
                ),
                observations=tuple(
                    Observation(
                        text=o["text"],
                        tool=o["tool"],
                        failure=ToolFailure(o["failure"]) if o["failure"] else None,
                        submitted=o["submitted"],
                        exit_code=o["exit_code"],
                        seconds=o["seconds"],
                    )
                    for o in turn["observations"]
                ),
                observation_ids=tuple(turn["observation_ids"]),
                timing=TurnTiming(turn["generation_seconds"], turn["execution_seconds"]),
            )
            for turn in record["turns"]
        ),
        stop=StopReason(record["stop"]),
        answer=Answer(AnswerStatus(record["answer"]["status"]), record["answer"]["text"]),
        episode_id=record["episode_id"],
        fault=record["fault"],
        seconds=record["seconds"],
        chat=ChatRecord(tuple(record["messages"]), record["usage"]) if "messages" in record else None,
    )


class Journal:
    """Appends rollouts to a file. A context manager; safe to share between processes.

    Args:
        repair: cut off a torn last line on entering; for one process only, before any other writes.
    """

    def __init__(self, path: Path, *, repair: bool = True) -> None:
        self._path = path
        self._repair = repair
        self._fd = -1
        self._alone = threading.Lock()  # the file's lock keeps out processes, not our own threads

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._repair:
            _cut_torn_line(self._path)
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self

    def __exit__(self, *exc: object) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def write(self, rollout: Rollout, **context: Any) -> None:
        """Append one line. May be called from any thread.

        Raises:
            ValueError: a reward or a log-prob is no finite number; JSON has none.
            OSError: the file system refuses, or took only part of the line (no space left), or another
                process does not let go of the file.
        """
        line = _line(rollout_record(rollout, **context))
        with self._alone, _locked(self._fd):
            end = os.fstat(self._fd).st_size
            if end and os.pread(self._fd, 1, end - 1) != b"\n":
                line = b"\n" + line  # another process was killed in the middle of its own
            written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(f"{self._path}: only {written} of {len(line)} bytes were written; free some space")

    def write_all(self, rollouts: Iterable[Rollout], **context: Any) -> None:
        """Append one line each."""
        for rollout in rollouts:
            self.write(rollout, **context)


def _line(record: Mapping[str, Any]) -> bytes:
    """A record as one line. The event loop writes lines of megabytes, so the quick way comes first."""
    numbers = [record["reward"] or 0.0, *(p for turn in record["turns"] for p in turn["logprobs"] or ())]
    if not all(map(math.isfinite, numbers)):  # orjson would write null
        raise ValueError(f"episode {record['episode_id']!r} has a reward or a log-prob that is not finite")
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half a surrogate pair or an integer of more than 64 bits, in a call's arguments
        return json.dumps(record, ensure_ascii=True, allow_nan=False, default=str).encode() + b"\n"


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a journal in order; lines that a kill has torn are left out."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


@contextmanager
def _locked(fd: int) -> Iterator[None]:
    """Alone with the file; who dies lets go of it.

    Raises:
        OSError: somebody has held it for `LOCK_TIMEOUT_S`, far longer than a line takes.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OSError(
                    f"the journal has been locked by another process for {LOCK_TIMEOUT_S:g} s, expected "
                    "milliseconds; end that process (is it stopped?)"
                ) from error
            time.sleep(0.001)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _cut_torn_line(path: Path) -> None:
    """Drop what follows the last newline: the rest of a write that a kill interrupted."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65_536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            file.truncate(position)
