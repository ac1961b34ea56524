"""Writing: each event of an episode is in the files before the next one happens.

A process writes two files of its own, so that none waits for another and a kill tears only what was being
written:

- `<start>-<process>.jsonl`: a readable line per event: `started`, each `turn`, `ended` with the reward …
  `prev` is the offset of the line before of the same episode, so that it can be read from its end; `crc` is
  the line's checksum.
- `<start>-<process>.tokens`: the numbers of the lines' `columns`. They are written before their line, so that
  a line that is whole has all its numbers.

Nothing is buffered here: what a process has written survives its death. `sync` brings it to the disk.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.journal.columns import pack, with_checksum
from sandbox_rl.journal.records import end_record, turn_text
from sandbox_rl.observer import Observer
from sandbox_rl.types import Rollout, StopReason, Task, Turn


class Journal:
    """One process's part of a journal; a context manager, safe to call from any thread.

    Args:
        directory: of the journal; all processes of a run share it.
        start: which start of the run this is; the next that is free where nobody counts.
        process: number of this process.

    Raises:
        ValueError: from every writing method, on a log-prob that is not finite.
        OSError: likewise, when the file system refuses or takes only a part (no space left).
    """

    def __init__(self, directory: Path, *, start: int | None = None, process: int = 0) -> None:
        self._directory = directory
        self._start = start
        self._process = process
        self._one_at_a_time = threading.Lock()
        self._lines = self._tokens = -1
        self._lines_end = self._tokens_end = 0
        self._last: dict[str, tuple[int, int]] = {}
        """Of each episode under way: offset of its last line, and how many turns are written."""

    def __enter__(self) -> Journal:
        self._directory.mkdir(parents=True, exist_ok=True)
        for start in count() if self._start is None else [self._start]:
            stem = self._directory / f"{start:04d}-{self._process:04d}"
            try:
                self._lines = _new_file(stem.with_suffix(".jsonl"))
                break
            except FileExistsError:
                if self._start is not None:
                    raise
        self._tokens = _new_file(stem.with_suffix(".tokens"))
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in (self._lines, self._tokens):
            os.close(fd)

    def started(self, episode_id: str, task: Task, prompt_ids: Sequence[int], **context: Any) -> None:
        """An episode begins; where one of that id has begun before, this is a new try.

        Args:
            context: more fields, such as the phase or the step.
        """
        event: dict[str, Any] = {"event": "started", "episode_id": episode_id, "task_id": task.id}
        event |= {"domain": task.domain, "time": time.time(), **context}
        with self._one_at_a_time:
            self._last[episode_id] = self._append(event, [prompt_ids], ()), 0

    def turn(self, episode_id: str, turn: Turn) -> None:
        """A turn is over: the action has been answered."""
        with self._one_at_a_time:
            self._turn(episode_id, turn)

    def ended(self, rollout: Rollout, **context: Any) -> None:
        """An episode is over and scored. What was not told of its turns, or of its start, is written now."""
        trajectory = rollout.trajectory
        id = trajectory.episode_id
        if not math.isfinite(rollout.reward.value or 0.0):
            raise ValueError(
                f"episode {id!r} has the reward {rollout.reward.value}, expected a finite number"
            )
        if id not in self._last or self._last[id][1] > len(trajectory.turns):
            self.started(id, rollout.task, trajectory.prompt_ids, **context)
        with self._one_at_a_time:
            for turn in trajectory.turns[self._last[id][1] :]:
                self._turn(id, turn)
            before, turns = self._last.pop(id)
            event = {"event": "ended", "episode_id": id, "prev": before, "turns": turns, "time": time.time()}
            self._append(event | _end_of(rollout) | context, (), ())

    def abandoned(self, episode_id: str) -> None:
        """An episode under way was cancelled, or failed on our side."""
        with self._one_at_a_time:
            if episode_id in self._last:
                before, _ = self._last.pop(episode_id)
                event = {"event": "abandoned", "episode_id": episode_id, "prev": before, "time": time.time()}
                self._append(event, (), ())

    def replaced(self, episode_ids: Sequence[str]) -> None:
        """What earlier starts recorded of these episodes no longer counts: their updates are done again."""
        self._note({"event": "replaced", "episode_ids": list(episode_ids)})

    def cancelled(self, episode_id: str) -> None:
        """This episode has ended, and its group was cancelled: it is sampled again later."""
        self._note({"event": "cancelled", "episode_id": episode_id})

    def sync(self) -> None:
        """Bring everything to the disk: it then survives the machine."""
        for fd in (self._tokens, self._lines):
            os.fsync(fd)

    def _turn(self, episode_id: str, turn: Turn) -> None:
        before, turns = self._last[episode_id]
        event = {"event": "turn", "episode_id": episode_id, "prev": before, "index": turns}
        event |= {"time": time.time(), **turn_text(turn)}
        columns = (turn.action.token_ids, turn.observation_ids)
        self._last[episode_id] = self._append(event, columns, turn.action.logprobs), turns + 1

    def _note(self, event: Mapping[str, Any]) -> None:
        with self._one_at_a_time:
            self._append({**event, "time": time.time()}, (), ())

    def _append(
        self, event: Mapping[str, Any], ids: Sequence[Sequence[int]], logprobs: Sequence[float] | None
    ) -> int:
        """Write one event; returns the offset of its line."""
        content, columns = pack(ids, logprobs or (), self._tokens_end)
        where = {"at": columns.at, "lengths": columns.lengths, "crc": columns.crc}
        line = _line({**event, "columns": where | {"logprobs": None if logprobs is None else len(logprobs)}})
        _write_whole(self._tokens, content, self._tokens_end)
        self._tokens_end += len(content)
        at = self._lines_end
        _write_whole(self._lines, line, at)
        self._lines_end += len(line)
        return at


def _end_of(rollout: Rollout) -> dict[str, Any]:
    turns = rollout.trajectory.turns
    return end_record(rollout) | {
        "masked": rollout.reward.masked,
        "sampled": sum(len(turn.action.token_ids) for turn in turns),
        "observed": sum(len(turn.observation_ids) for turn in turns),
        "generation_seconds": sum(turn.timing.generation for turn in turns),
        "execution_seconds": sum(turn.timing.execution for turn in turns),
    }


def _line(event: Mapping[str, Any]) -> bytes:
    """An event as one line; the event loop waits for it, so the quick way comes first."""
    try:
        return with_checksum(orjson.dumps(event))
    except TypeError:  # half a surrogate pair or an integer of more than 64 bits, in a call's arguments
        return with_checksum(json.dumps(event, ensure_ascii=True, allow_nan=False, default=str).encode())


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def _write_whole(fd: int, content: bytes, at: int) -> None:
    """Write at an offset, so that what follows a write that failed replaces what it left."""
    left = memoryview(content)
    while left:
        written = os.pwrite(fd, left, at)
        left, at = left[written:], at + written


class JournalObserver(Observer):
    """Writes what happens, when it happens.

    Args:
        context: gives further fields of an episode, such as the phase or the step.
    """

    def __init__(
        self, journal: Journal, context: Callable[[EpisodeRequest], Mapping[str, Any]] = lambda _: {}
    ) -> None:
        self._journal = journal
        self._context = context

    def started(self, episode: EpisodeRequest, prompt_ids: tuple[int, ...]) -> None:
        self._journal.started(episode.id, episode.task, prompt_ids, **self._fields(episode))

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        self._journal.turn(episode.id, turn)

    def ended(self, episode: EpisodeRequest, stop: StopReason | None) -> None:
        if stop is None:
            self._journal.abandoned(episode.id)

    def rolled_out(self, episode: EpisodeRequest, rollout: Rollout) -> None:
        self._journal.ended(rollout, **self._fields(episode))

    def _fields(self, episode: EpisodeRequest) -> dict[str, Any]:
        return {"seed": episode.seed, **self._context(episode)}
