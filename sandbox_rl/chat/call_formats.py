"""The call formats: Hermes and Qwen, Qwen3-Coder's XML, Llama 3's JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_rl.chat.calls import BrokenCall, CallFormat, call_from, parse_object, to_json
from sandbox_rl.chat.encoding import Piece
from sandbox_rl.types import ToolCall

__all__ = ["CALL_FORMATS", "Hermes", "LlamaJson", "QwenXml", "detect", "make"]

CALL_FORMATS = ("hermes", "qwen_xml", "llama_json")

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen2.5, Qwen3)."""

    opening = re.compile(re.escape(_OPEN))

    def read(self, text: str, start: int) -> tuple[ToolCall, int]:
        """The call whose tag begins at `start`."""
        value, end = parse_object(text, _skip_space(text, start + len(_OPEN)))
        end = _expect(text, end, _CLOSE)
        return call_from(value, "arguments", end), end

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


class QwenXml:
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.

    Values are text; those whose parameter is not a string by its schema are read as JSON.
    """

    opening = Hermes.opening
    _function = re.compile(r"\s*<function=([^<>\n]+)>")
    _parameter = re.compile(r"\s*<parameter=([^<>\n]+)>")
    _value_end = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>))")

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        functions = [t["function"] for t in tools]
        self._types = {
            f["name"]: {k: v.get("type") for k, v in f.get("parameters", {}).get("properties", {}).items()}
            for f in functions
        }

    def read(self, text: str, start: int) -> tuple[ToolCall, int]:
        """The call whose tag begins at `start`."""
        function = self._function.match(text, start + len(_OPEN))
        if function is None:
            raise BrokenCall("<function=NAME> must follow <tool_call>")
        name, end = function[1].strip(), function.end()
        arguments: dict[str, Any] = {}
        while (parameter := self._parameter.match(text, end)) is not None:
            key = parameter[1].strip()
            value_end = self._value_end.search(text, parameter.end())
            if value_end is None:
                raise BrokenCall(f"the parameter {key[:60]} is not closed by </parameter>")
            if key in arguments:
                raise BrokenCall(f"the parameter {key[:60]} occurs twice")
            value = text[parameter.end() : value_end.start()].removeprefix("\n").removesuffix("\n")
            arguments[key] = self._typed(name, key, value)
            end = value_end.end()
        end = _expect(text, _expect(text, end, "</function>"), _CLOSE)
        return ToolCall(name, arguments), end

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

    def _typed(self, name: str, key: str, value: str) -> Any:
        if self._types.get(name, {}).get(key, "string") == "string":
            return value
        try:
            return parse_object(f'{{"v": {value}}}', 0)[0].get("v", value)
        except BrokenCall:
            return value  # the tool says what it expected


class LlamaJson:
    """`{"name": …, "parameters": {…}}`, alone or after `<|python_tag|>` (Llama 3.1 and later).

    A call begins at a line's start. Several are separated by ";" or a line break.
    """

    opening = re.compile(
        r"<\|python_tag\|>|\A\s*(?=\{)"
        r"|(?:^|(?<=[;}]))[ \t;]{0,8}(?=\{\s*\"(?:name|type|parameters|arguments)\")",
        re.MULTILINE,
    )

    def read(self, text: str, start: int) -> tuple[ToolCall, int]:
        """The call that begins at `start`, blanks before it allowed."""
        tag = "<|python_tag|>"
        begin = start + len(tag) if text.startswith(tag, start) else start
        while begin < len(text) and (text[begin].isspace() or text[begin] == ";"):
            begin += 1
        value, end = parse_object(text, begin)
        if value.get("type") == "function":
            del value["type"]
        return call_from(value, "arguments" if "arguments" in value else "parameters", end), end

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


def make(name: str, tools: Sequence[Mapping[str, Any]]) -> CallFormat:
    """The format called `name`; KeyError if there is none."""
    formats: dict[str, CallFormat] = {
        "hermes": Hermes(),
        "qwen_xml": QwenXml(tools),
        "llama_json": LlamaJson(),
    }
    return formats[name]


def detect(template: str) -> str | None:
    """The format that a chat template's source describes, None if it is none of ours."""
    if "<function=" in template:
        return "qwen_xml"
    if _OPEN in template and "arguments" in template and "<arg_key>" not in template:
        return "hermes"
    if '"parameters"' in template and '"name"' in template:
        return "llama_json"
    return None


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _expect(text: str, start: int, tag: str) -> int:
    begin = _skip_space(text, start)
    if not text.startswith(tag, begin):
        seen = json.dumps(text[begin : begin + 20]) if begin < len(text) else "the end of your turn"
        raise BrokenCall(f"{tag} is missing before {seen}")
    return begin + len(tag)
