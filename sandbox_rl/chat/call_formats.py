"""The call formats of Hermes and Qwen, of Qwen3-Coder, of GLM and of Llama 3; `chat.dialects` has more.

What is missing at a call's end is passed over where the call is whole without it, as the models' own parsers
on servers do: the turn's end or the next call's opening stands for the closing tag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_rl.chat.calls import BrokenCall, WrittenCalls, call_from, parse_object, to_json
from sandbox_rl.chat.encoding import Piece
from sandbox_rl.types import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
Found = tuple[tuple[ToolCall, ...], int]


class Hermes(WrittenCalls):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen2.5, Qwen3)."""

    opening = re.compile(re.escape(_OPEN))

    def read(self, text: str, start: int) -> Found:
        value, end = parse_object(text, skip_space(text, start + len(_OPEN)))
        end = closed(text, end, _CLOSE, _OPEN)
        return (call_from(value, "arguments", end),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """Tags on lines of their own, the object between them."""
        body = f'{{"name": {to_json(call.name)}, "arguments": {to_json(dict(call.arguments))}}}'
        return Piece(f"{_OPEN}\n", True), Piece(body), Piece(f"\n{_CLOSE}", True)

    def instructions(self) -> str:
        """In the words of the Qwen template."""
        return (
            "For each function call, return a json object with function name and arguments within "
            '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
            '"arguments": <args-json-object>}\n</tool_call>'
        )


class _Typed(WrittenCalls):
    """Formats whose values are text; where the schema says other than a string, they are read as JSON."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        functions = [t["function"] for t in tools]
        self._types = {
            f["name"]: {k: v.get("type") for k, v in f.get("parameters", {}).get("properties", {}).items()}
            for f in functions
        }

    def _typed(self, name: str, key: str, value: str) -> Any:
        if self._types.get(name, {}).get(key, "string") == "string":
            return value
        try:
            return parse_object(f'{{"v": {value}}}', 0)[0].get("v", value)
        except BrokenCall:
            return value  # the tool says what it expected


class QwenXml(_Typed):
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>` (Qwen3-Coder).

    The outer tag may be missing, and closing tags where what follows shows that they were meant.
    """

    opening = re.compile(rf"{_OPEN}|<function=(?=[^<>\n]+>)")
    _function = re.compile(r"\s*<function=([^<>\n]+)>")
    _parameter = re.compile(r"\s*<parameter=([^<>\n]+)>")
    _value_end = re.compile(
        r"</parameter>(?=\s*(?:<parameter=|</function>|</tool_call>|(?:<tool_call>\s*)?<function=|\Z))"
    )

    def read(self, text: str, start: int) -> Found:
        tagged = text.startswith(_OPEN, start)
        function = self._function.match(text, start + len(_OPEN) if tagged else start)
        if function is None:
            raise BrokenCall("<function=NAME> must follow <tool_call>")
        name, end = function[1].strip(), function.end()
        arguments: dict[str, Any] = {}
        while (parameter := self._parameter.match(text, end)) is not None:
            key = parameter[1].strip()
            if key in arguments:
                raise BrokenCall(f"the parameter {key[:60]} occurs twice")
            value, end = self._value(text, parameter.end(), name, key)
            arguments[key] = self._typed(name, key, value)
        end = closed(text, end, "</function>", _CLOSE, _OPEN, "<function=")
        if tagged or text.startswith(_CLOSE, skip_space(text, end)):
            end = closed(text, end, _CLOSE, _OPEN, "<function=")
        return (ToolCall(name, arguments),), end

    def _value(self, text: str, start: int, name: str, key: str) -> tuple[str, int]:
        """The value that begins at `start`, and where what closes it ends."""
        ended = self._value_end.search(text, start)
        first_close = text.find("</parameter>", start)
        until = first_close if first_close >= 0 else len(text)
        for following in re.finditer("<parameter=([^<>\n]+)>", text[start:until]):
            # Not closed, if another parameter of the tool begins before anything closes.
            if following[1] in self._types.get(name, {}):
                value = following.string[: following.start()].rstrip()
                return value.removeprefix("\n"), start + following.start()
        if ended is None:
            raise BrokenCall(f"the parameter {key[:60]} is not closed by </parameter>")
        return text[start : ended.start()].removeprefix("\n").removesuffix("\n"), ended.end()

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """Every tag and value on lines of their own."""
        pieces = [Piece(f"{_OPEN}\n<function=", True), Piece(call.name), Piece(">\n", True)]
        for key, value in call.arguments.items():
            text = value if isinstance(value, str) else to_json(value)
            pieces += [Piece("<parameter=", True), Piece(key), Piece(">\n", True)]
            pieces += [Piece(text), Piece("\n</parameter>\n", True)]
        return (*pieces, Piece(f"</function>\n{_CLOSE}", True))

    def instructions(self) -> str:
        """In the words of the Qwen3-Coder template."""
        return (
            "If you choose to call a function reply in the following format with no suffix:\n<tool_call>\n"
            "<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
            "</function>\n</tool_call>"
        )


class Glm(_Typed):
    """`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>` (GLM-4.5 and later)."""

    opening = Hermes.opening
    _name = re.compile(r"\s*([^\s<>{}]+)\s*")
    _key = re.compile(r"\s*<arg_key>([^<>]*)</arg_key>\s*<arg_value>")
    _value_end = re.compile(r"</arg_value>(?=\s*(?:<arg_key>|</tool_call>|<tool_call>|\Z))")

    def read(self, text: str, start: int) -> Found:
        named = self._name.match(text, start + len(_OPEN))
        if named is None:
            raise BrokenCall("a tool's name must follow <tool_call>")
        arguments: dict[str, Any] = {}
        end = named.end()
        while (key := self._key.match(text, end)) is not None:
            name = key[1].strip()
            ended = self._value_end.search(text, key.end())
            if ended is None:
                raise BrokenCall(f"the value of {name[:60]} is not closed by </arg_value>")
            if name in arguments:
                raise BrokenCall(f"the argument {name[:60]} occurs twice")
            arguments[name] = self._typed(named[1], name, text[key.end() : ended.start()])
            end = ended.end()
        end = closed(text, end, _CLOSE, _OPEN)
        return (ToolCall(named[1], arguments),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """Name, keys and values on lines of their own."""
        pieces = [Piece(_OPEN, True), Piece(call.name), Piece("\n", True)]
        for key, value in call.arguments.items():
            text = value if isinstance(value, str) else to_json(value)
            pieces += [Piece("<arg_key>", True), Piece(key), Piece("</arg_key>\n<arg_value>", True)]
            pieces += [Piece(text), Piece("</arg_value>\n", True)]
        return (*pieces, Piece(_CLOSE, True))

    def instructions(self) -> str:
        """In the words of the GLM template."""
        return (
            "For each function call, output the function name and arguments within the following XML "
            "format:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
            "...\n</tool_call>"
        )


class LlamaJson(WrittenCalls):
    """`{"name": …, "parameters": {…}}`, alone or after `<|python_tag|>` (Llama 3.1 and later).

    A call begins at a line's start. Several are separated by ";" or a line break.
    """

    opening = re.compile(
        r"<\|python_tag\|>|\A\s*(?=\{)"
        r"|(?:^|(?<=[;}]))[ \t;]{0,8}(?=\{\s*\"(?:name|type|parameters|arguments)\")",
        re.MULTILINE,
    )

    def read(self, text: str, start: int) -> Found:
        """The call that begins at `start`, blanks before it allowed."""
        tag = "<|python_tag|>"
        begin = start + len(tag) if text.startswith(tag, start) else start
        while begin < len(text) and (text[begin].isspace() or text[begin] == ";"):
            begin += 1
        value, end = parse_object(text, begin)
        return (call_from(value, "arguments" if "arguments" in value else "parameters", end),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """One object on one line."""
        return (Piece(f'{{"name": {to_json(call.name)}, "parameters": {to_json(dict(call.arguments))}}}'),)

    def instructions(self) -> str:
        """In the words of the Llama template."""
        return (
            "To call a function, respond with JSON in the format "
            '{"name": function name, "parameters": dictionary of argument name and its value}. '
            "Do not use variables."
        )


def skip_space(text: str, start: int) -> int:
    """The first position from `start` on that holds no white space."""
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def closed(text: str, start: int, tag: str, *instead: str) -> int:
    """Where `tag` ends, which follows at `start`; or `start` if the turn ends there or `instead` follows.

    Raises:
        BrokenCall: something else follows.
    """
    begin = skip_space(text, start)
    if text.startswith(tag, begin):
        return begin + len(tag)
    if begin == len(text) or text.startswith(instead, begin):
        return begin
    raise BrokenCall(f"{tag} is missing before {json.dumps(text[begin : begin + 20])}")
