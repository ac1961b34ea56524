"""Whether the episodes of a journal are whole: one pass over its files, which are only read.

Of each episode the chain of its events is followed, and every line and every token column is held against its
checksum.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from sandbox_rl.journal.columns import is_as_written
from sandbox_rl.journal.reader import TURN, whole_lines, writers

_HEAD_BYTES, _TAIL_BYTES = 1_000, 300
_HEAD = re.compile(
    rb'"episode_id":\s*("(?:[^"\\]|\\.)*"),\s*"prev":\s*(\d+),\s*"index":\s*(\d+)(?:,\s*"time":\s*[\d.e+-]+)?,'
    rb'\s*"finish_reason":\s*"\w*",\s*"weight_version":\s*(-?\d+),'
)
_TAIL = re.compile(
    rb'"columns":\s*\{"at":\s*(\d+),\s*"lengths":\s*\[(\d[\d, ]*)\],\s*"crc":\s*(\d+),'
    rb'\s*"logprobs":\s*(\d+|null)\}(?:,"crc":"\w+")?\}\n$'
)
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class EndedEpisode:
    """An episode that has ended, scored or lost to a fault.

    Args:
        start: of the run, which sampled it.
        event: its last one, as it was written.
        seed, task: as its first event says.
        oldest: version of the oldest weights that sampled a turn of it; None where there is no turn.
        sampled: tokens.
        damage: what of it is not as it was written; "" where it is whole.
    """

    id: str
    start: int
    event: Mapping[str, Any]
    seed: int | None
    task: str
    oldest: int | None
    sampled: int
    damage: str


@dataclass(frozen=True, slots=True)
class Note:
    """What a run wrote about episodes that had ended: `replaced`, of earlier starts, or `cancelled`."""

    kind: str
    start: int
    episodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line that is not the one that was written; nothing of it is believed.

    Args:
        at: its first byte in the file.
    """

    file: Path
    at: int

    def __str__(self) -> str:
        return f"{self.file.name}: the line at byte {self.at} is not the one that was written"


@dataclass(slots=True)
class _Live:
    """An episode so far."""

    last: int
    task: str
    seed: int | None
    damage: str
    turns: int = 0
    sampled: int = 0
    oldest: int = _NEVER


def audited(directory: Path) -> Iterator[EndedEpisode | Note | DamagedLine]:
    """Everything that the processes of all starts have written, in the order of the starts."""
    for writer in writers(directory):
        yield from _Writer(directory / f"{writer}.jsonl").read()


def first_damage(directory: Path) -> str | None:
    """What of a journal is not as it was written, by name; None where all of it is.

    Raises:
        OSError: a file of it cannot be read.
    """
    for found in audited(directory):
        if isinstance(found, DamagedLine):
            return str(found)
        if isinstance(found, EndedEpisode) and found.damage:
            return f"episode {found.id!r}: {found.damage}"
    return None


def without_checksums(directory: Path) -> list[str]:
    """Names of the files whose lines have no checksums: an earlier version has written them."""
    return [f"{writer}.jsonl" for writer in writers(directory) if not _summed(directory / f"{writer}.jsonl")]


def _summed(path: Path) -> bool:
    """By two lines, of which one may be damaged; also where there is none yet."""
    first = [is_as_written(line) is not None for _, line in islice(whole_lines(path), 2)]
    return any(first) or not first


class _Writer:
    """One pass over the files of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = int(path.stem.split("-")[0])
        self._live: dict[str, _Live] = {}

    def read(self) -> Iterator[EndedEpisode | Note | DamagedLine]:
        summed = _summed(self._path)
        with self._path.with_suffix(".tokens").open("rb") as tokens:
            for at, line in whole_lines(self._path):
                if summed and not is_as_written(line):
                    yield DamagedLine(self._path, at)  # the rest of its episode shows the gap
                elif line.startswith(TURN):
                    self._turn(at, line, tokens.fileno())
                elif (found := self._event(at, line, tokens.fileno())) is not None:
                    yield found

    def _turn(self, at: int, line: bytes, tokens: int) -> None:
        head, where = _HEAD.search(line[:_HEAD_BYTES]), _TAIL.search(line[-_TAIL_BYTES:])
        if head is None or where is None:
            return  # its episode's chain shows the gap
        id = orjson.loads(head[1])
        before, index, version = int(head[2]), int(head[3]), int(head[4])
        episode = self._live.get(id)
        if episode is None:
            return
        lengths = tuple(map(int, where[2].split(b",")))
        logprobs = 0 if where[4] == b"null" else int(where[4])
        if (before, index) != (episode.last, episode.turns):
            episode.damage = episode.damage or f"turn {index} follows {episode.turns} others"
        elif where[4] != b"null" and logprobs != lengths[0]:
            episode.damage = episode.damage or f"turn {index} has {logprobs} log-probs of {lengths[0]} tokens"
        elif not _whole(tokens, int(where[1]), 4 * (sum(lengths) + logprobs), int(where[3])):
            episode.damage = episode.damage or f"the tokens of turn {index} are not those that were written"
        episode.last, episode.turns = at, episode.turns + 1
        episode.sampled += lengths[0]
        episode.oldest = min(episode.oldest, version)

    def _event(self, at: int, line: bytes, tokens: int) -> EndedEpisode | Note | None:
        try:
            event = orjson.loads(line)
            kind = event["event"]
            if kind == "started":
                self._started(at, event, tokens)
            elif kind == "abandoned":
                self._live.pop(event["episode_id"], None)
            elif kind == "ended":
                return self._ended(event)
            elif kind == "replaced":
                return Note(kind, self._start, tuple(event["episode_ids"]))
            elif kind == "cancelled":
                return Note(kind, self._start, (event["episode_id"],))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # not a line of ours
        return None

    def _started(self, at: int, event: Mapping[str, Any], tokens: int) -> None:
        where = event["columns"]
        whole = _whole(tokens, where["at"], 4 * sum(where["lengths"]), where["crc"])
        damage = "" if whole else "the tokens of its prompt are not those that were written"
        self._live[event["episode_id"]] = _Live(at, event["task_id"], event.get("seed"), damage)

    def _ended(self, event: Mapping[str, Any]) -> EndedEpisode:
        id = event["episode_id"]
        episode = self._live.pop(id, None) or _Live(-1, "", None, "it has no beginning")
        damage = episode.damage
        if event["prev"] != episode.last or event["turns"] != episode.turns:
            damage = damage or f"it has {episode.turns} turns, and ended after {event['turns']}"
        elif "usage" not in event and event["sampled"] != episode.sampled:
            damage = damage or f"its turns have {episode.sampled} tokens, {event['sampled']} were sampled"
        oldest = None if episode.oldest == _NEVER else episode.oldest
        return EndedEpisode(
            id, self._start, event, episode.seed, episode.task, oldest, episode.sampled, damage
        )


def _whole(tokens: int, at: int, size: int, crc: int) -> bool:
    content = os.pread(tokens, size, at)
    return len(content) == size and zlib.crc32(content) == crc
