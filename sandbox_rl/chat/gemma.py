"""The call format of Gemma 4: JSON with bare keys and quotes of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_rl.chat.call_formats import Found, closed, skip_space
from sandbox_rl.chat.calls import BrokenCall, WrittenCalls, parse_object
from sandbox_rl.chat.encoding import Piece
from sandbox_rl.types import ToolCall


class Gemma(WrittenCalls):
    """`<|tool_call>call:name{key:<|"|>text<|"|>,other:3}<tool_call|>` (Gemma 4)."""

    thinking = ("<|channel>", "<channel|>")
    opening = re.compile(r"<\|tool_call>")
    _name = re.compile(r"\s*call:\s*([\w.-]+)\s*(?=\{)")
    _quote = '<|"|>'
    _key = re.compile(r'\s*(?:<\|"\|>([^<>]*?)<\|"\|>|([^\s:,{}\[\]<>]+))\s*:')
    _bare = re.compile(r"\s*([^\s,{}\[\]<>][^,{}\[\]<>]*)")
    _deepest = 32

    def read(self, text: str, start: int) -> Found:
        named = self._name.match(text, start + len("<|tool_call>"))
        if named is None:
            raise BrokenCall("call:NAME{…} must follow <|tool_call>")
        arguments, end = self._object(text, named.end(), 0)
        end = closed(text, end, "<tool_call|>", "<|tool_call>")
        return (ToolCall(named[1], arguments),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """Keys sorted, strings between their quotes."""
        return (
            Piece("<|tool_call>call:", True),
            Piece(call.name),
            *self._written(dict(call.arguments), quoted_keys=False),
            Piece("<tool_call|>", True),
        )

    def turn(self, before: str, calls: Sequence[ToolCall]) -> tuple[Piece, ...]:
        """Calls follow one another, the text first."""
        return (*([Piece(before)] if before else []), *(p for call in calls for p in self.write(call)))

    def instructions(self) -> str:
        return 'To call a function, write <|tool_call>call:NAME{argument:<|"|>text<|"|>,other:3}<tool_call|>.'

    def _object(self, text: str, start: int, depth: int) -> tuple[dict[str, Any], int]:
        """The mapping whose brace is at `start`."""
        found: dict[str, Any] = {}
        end = skip_space(text, start + 1)
        while not text.startswith("}", end):
            key = self._key.match(text, end)
            if key is None:
                raise BrokenCall("a key and a colon are expected among the arguments")
            name = key[1] if key[1] is not None else key[2]
            if name in found:
                raise BrokenCall(f"the argument {name[:60]} occurs twice")
            found[name], end = self._value(text, key.end(), depth)
            end = self._next(text, end, "}")
        return found, end + 1

    def _value(self, text: str, start: int, depth: int) -> tuple[Any, int]:
        if depth > self._deepest:
            raise BrokenCall("it is nested too deep")
        begin = skip_space(text, start)
        if text.startswith(self._quote, begin):
            inner = begin + len(self._quote)
            end = text.find(self._quote, inner)
            if end < 0:
                raise BrokenCall(f"a string is not closed by {self._quote}")
            return text[inner:end], end + len(self._quote)
        if text.startswith("{", begin):
            return self._object(text, begin, depth + 1)
        if text.startswith("[", begin):
            items: list[Any] = []
            end = skip_space(text, begin + 1)
            while not text.startswith("]", end):
                item, end = self._value(text, end, depth + 1)
                items.append(item)
                end = self._next(text, end, "]")
            return items, end + 1
        bare = self._bare.match(text, begin)
        if bare is None:
            raise BrokenCall("a value is missing among the arguments")
        try:
            return parse_object(f'{{"v": {bare[1].strip()}}}', 0)[0]["v"], bare.end()
        except BrokenCall:
            return bare[1].strip(), bare.end()

    @staticmethod
    def _next(text: str, start: int, closing: str) -> int:
        """After the comma at `start`, or at what closes."""
        begin = skip_space(text, start)
        if text.startswith(closing, begin):
            return begin
        if not text.startswith(",", begin):
            raise BrokenCall(f"a comma or {closing} is missing among the arguments")
        return skip_space(text, begin + 1)

    def _written(self, value: Any, *, quoted_keys: bool) -> tuple[Piece, ...]:
        quote = Piece(self._quote, True)
        if isinstance(value, str):
            return quote, Piece(value), quote
        if isinstance(value, Mapping):
            pieces = [Piece("{", True)]
            for index, (key, inner) in enumerate(sorted(value.items())):
                pieces += [Piece(",", True)] if index else []
                pieces += [quote, Piece(key), quote] if quoted_keys else [Piece(key)]
                pieces += [Piece(":", True), *self._written(inner, quoted_keys=quoted_keys)]
            return (*pieces, Piece("}", True))
        if isinstance(value, list):
            pieces = [Piece("[", True)]
            for index, inner in enumerate(value):
                pieces += [Piece(",", True)] if index else []
                pieces += self._written(inner, quoted_keys=True)
            return (*pieces, Piece("]", True))
        return (Piece(json.dumps(value)),)
