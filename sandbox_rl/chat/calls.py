"""How models write tool calls, and how those are read from the text of a sampled turn.

Rules, the same for all formats:

- Reasoning (`<think>…</think>`, also one that the turn's header opened) holds no calls.
- Calls are run in the order in which they stand.
- What cannot be read is a `MalformedCall`. If even its end cannot be made out, nothing after it in
  the turn counts: text inside a broken call must not be mistaken for a call of its own.
- A turn that goes on to write a tool result or another role's header has invented it. The calls
  before that count, nothing after it does, and one `MalformedCall` says so.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sandbox_rl.chat.encoding import Piece
from sandbox_rl.types import MalformedCall, ToolCall

MAX_CALLS = 64
"""More calls than this in one turn are not read."""


class BrokenCall(Exception):
    """A call cannot be read. `end` is where it ends in the text, None if that cannot be made out."""

    def __init__(self, reason: str, end: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.end = end


class WrittenCalls(ABC):
    """One way of writing calls; in most, reasoning is in `<think>` and each call begins a new line."""

    opening: re.Pattern[str]
    """Finds where the next call begins, in text outside of reasoning."""
    thinking: tuple[str, str] = ("<think>", "</think>")
    """What opens and what closes reasoning."""
    speaks: frozenset[str] = frozenset()
    """Tags of the template's frames that a turn holds of right besides those of a call."""
    invented: tuple[str, ...] = ()
    """Texts of the template's frames that a turn never holds, besides their tags."""

    @abstractmethod
    def read(self, text: str, start: int) -> tuple[tuple[ToolCall, ...], int]:
        """The calls that begin at `start`, mostly one, and where they end. Raises `BrokenCall`."""

    @abstractmethod
    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """One call as the model should write it; tags are trusted, names and arguments are not."""

    @abstractmethod
    def instructions(self) -> str:
        """One paragraph that tells a model how to write a call."""

    def turn(self, before: str, calls: Sequence[ToolCall]) -> tuple[Piece, ...]:
        """An assistant turn's content: text, then calls."""
        pieces = [Piece(before)] if before else []
        for call in calls:
            if pieces:
                pieces.append(Piece("\n", trusted=True))
            pieces.extend(self.write(call))
        return tuple(pieces)

    def words(self, text: str) -> str:
        """What a stretch of a turn without calls says, for people."""
        return text.strip()


@dataclass(frozen=True, slots=True)
class CallReader:
    """Reads the calls of a turn.

    Args:
        format: how they are written.
        example: a correct call, shown when one is malformed.
        invented: tags that only the template writes in a conversation: roles and tool results.
        starts_thinking: whether the turn's header has opened reasoning already.
    """

    format: WrittenCalls
    example: str
    invented: tuple[str, ...]
    starts_thinking: bool

    def read(self, text: str) -> tuple[ToolCall | MalformedCall, ...]:
        """The calls in `text`, in order. Never raises."""
        found: list[ToolCall | MalformedCall] = []
        for call in self._scan(text):
            found.append(call)
            if len(found) > MAX_CALLS:
                found[-1] = MalformedCall(
                    f"More than {MAX_CALLS} tool calls in one turn: the rest was not run."
                )
                break
        return tuple(found)

    def reasoning_and_words(self, text: str) -> tuple[str, str]:
        """Reasoning at the head of the turn, and the words between it and the first call. Never raises."""
        reasoning, words = "", text
        think, end_think = self.format.thinking
        if self.starts_thinking or text.lstrip().startswith(think):
            reasoning, _, words = text.partition(end_think)
            reasoning = reasoning.replace(think, "", 1)
        opened = self.format.opening.search(words)
        return reasoning.strip(), self.format.words(words[: opened.start()] if opened else words)

    def _scan(self, text: str) -> Iterator[ToolCall | MalformedCall]:
        position = 0
        think, end_think = self.format.thinking
        if self.starts_thinking:
            position = _after(text, end_think, 0)
        stop = re.compile("|".join(re.escape(t) for t in (think, *self.invented)))
        opening, stopping = _Finder(self.format.opening, text), _Finder(stop, text)
        while True:
            opened, stopped = opening.next(position), stopping.next(position)
            if stopped is not None and (opened is None or stopped.start() < opened.start()):
                if stopped.group() == think:
                    position = _after(text, end_think, stopped.end())
                    continue
                yield MalformedCall(
                    f"You wrote {stopped.group()} yourself. Results come only from the tools: end your turn "
                    "after your tool calls and wait. What followed it in your turn was not run."
                )
                return
            if opened is None:
                return
            try:
                calls, position = self.format.read(text, opened.start())
            except BrokenCall as broken:
                rest = "" if broken.end is not None else " What followed it in your turn was not run."
                yield MalformedCall(
                    f"Your tool call could not be read: {broken.reason}.{rest} "
                    f"Write a tool call exactly like this:\n{self.example}"
                )
                if broken.end is None:
                    return
                position = broken.end
            else:
                yield from calls


def parse_object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """The JSON object at `start` and where it ends; stricter than `json.loads`, but line breaks may stand in
    strings as they are: that is unambiguous, and models write scripts so.

    Raises:
        BrokenCall: no valid JSON object; duplicate keys, NaN or infinite numbers; nested too deep.
    """
    if not text.startswith("{", start):
        raise BrokenCall("a JSON object beginning with { is expected")
    value, end = parse_json(text, start)
    assert isinstance(value, dict)
    return value, end


def parse_json(text: str, start: int) -> tuple[Any, int]:
    """As `parse_object`, of any JSON value."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        where = f"character {error.pos - start} of the call"
        raise BrokenCall(f"it is not valid JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise BrokenCall("it is nested too deep") from None
    except ValueError as error:
        raise BrokenCall(f"it is not valid JSON: {error}") from None


def to_json(value: Any) -> str:
    """JSON as templates write it: non-ASCII characters stay as they are."""
    return json.dumps(value, ensure_ascii=False)


def call_from(value: Mapping[str, Any], key: str, end: int) -> ToolCall:
    """A call from {"name": …, key: {…}}.

    Raises:
        BrokenCall: a key is missing, unknown or of the wrong type.
    """
    if set(value) - {"id", "type"} != {"name", key}:
        have = ", ".join(to_json(k) for k in list(value)[:8]) or "none"
        raise BrokenCall(f'its keys must be exactly "name" and "{key}", they are: {have[:200]}', end)
    name, arguments = value["name"], value[key]
    if not isinstance(name, str) or not name:
        raise BrokenCall('"name" must be a string that names a tool', end)
    if not isinstance(arguments, dict):
        raise BrokenCall(f'"{key}" must be a JSON object such as {{}}', end)
    called = value.get("id", "")
    return ToolCall(name, arguments, called if isinstance(called, str) else "")


class _Finder:
    """Finds a pattern from rising positions, searching no stretch of the text twice."""

    def __init__(self, pattern: re.Pattern[str], text: str) -> None:
        self._pattern = pattern
        self._text = text
        self._found = pattern.search(text)

    def next(self, position: int) -> re.Match[str] | None:
        """The first occurrence that begins at `position` or later."""
        if self._found is not None and self._found.start() < position:
            self._found = self._pattern.search(self._text, position)
        return self._found


def _after(text: str, mark: str, start: int) -> int:
    found = text.find(mark, start)
    return len(text) if found < 0 else found + len(mark)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {to_json(key)[:60]} occurs twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant, strict=False
)
