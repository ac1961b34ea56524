"""The call formats of Mistral, DeepSeek and gpt-oss, and the table of all formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox_rl.chat.call_formats import Found, Glm, Hermes, LlamaJson, QwenXml, closed, skip_space
from sandbox_rl.chat.calls import BrokenCall, WrittenCalls, call_from, parse_json, parse_object, to_json
from sandbox_rl.chat.encoding import Piece
from sandbox_rl.chat.gemma import Gemma
from sandbox_rl.registry import Registry
from sandbox_rl.types import ToolCall


class Mistral(WrittenCalls):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each.

    Args:
        named: whether calls are written in the second way (tokenizers since version 11).
    """

    opening = re.compile(r"\[TOOL_CALLS\]")
    _name = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\](\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)")

    def __init__(self, *, named: bool) -> None:
        self._named = named
        self.thinking = ("[THINK]", "[/THINK]") if named else ("<think>", "</think>")

    def read(self, text: str, start: int) -> Found:
        """The calls after the tag at `start`, in either way."""
        begin = skip_space(text, start + len("[TOOL_CALLS]"))
        if text.startswith("[", begin):
            values, end = parse_json(text, begin)
            if not all(isinstance(value, dict) for value in values):
                raise BrokenCall("every item of the list must be a JSON object", end)
            return tuple(call_from(value, "arguments", end) for value in values), end
        if text.startswith("{", begin):
            value, end = parse_object(text, begin)
            return (call_from(value, "arguments", end),), end
        named = self._name.match(text, begin)
        if named is None:
            raise BrokenCall("a list of calls or a tool's name must follow [TOOL_CALLS]")
        arguments, end = parse_object(text, named.end())
        return (ToolCall(named[1], arguments, named[2] or ""),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        return self.turn("", [call])

    def turn(self, before: str, calls: Sequence[ToolCall]) -> tuple[Piece, ...]:
        """One list for all calls, or a tag for each."""
        pieces = [Piece(before)] if before else []
        if self._named:
            for call in calls:
                pieces += [Piece("[TOOL_CALLS]", True), Piece(call.name), Piece("[ARGS]", True)]
                pieces.append(Piece(to_json(dict(call.arguments))))
            return tuple(pieces)
        made = [
            {"name": c.name, "arguments": dict(c.arguments), "id": c.id or f"call{i:05d}"}
            for i, c in enumerate(calls)
        ]
        return (*pieces, Piece("[TOOL_CALLS]", True), Piece(to_json(made))) if made else tuple(pieces)

    def instructions(self) -> str:
        return (
            "To call functions, write [TOOL_CALLS] and a JSON list of objects with the keys name, arguments "
            "and id, a word of nine letters or digits."
        )


class DeepSeek(WrittenCalls):
    """`<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a line and a fenced JSON object (V3, R1), or
    `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}` (V3.1), in a pair of tags around all calls.

    Args:
        fenced: whether calls are written in the first way; both are read.
    """

    opening = re.compile("<｜tool▁call▁begin｜>")
    _fenced = re.compile(r"\s*function\s*<｜tool▁sep｜>\s*([^\s<>]+)\s*```(?:json)?\s*")
    _bare = re.compile(r"\s*([^\s<>]+)\s*<｜tool▁sep｜>\s*")

    def __init__(self, *, fenced: bool) -> None:
        self._is_fenced = fenced

    def read(self, text: str, start: int) -> Found:
        after = start + len("<｜tool▁call▁begin｜>")
        fenced = self._fenced.match(text, after)
        head = fenced or self._bare.match(text, after)
        if head is None:
            raise BrokenCall("a tool's name and <｜tool▁sep｜> must follow <｜tool▁call▁begin｜>")
        arguments, end = parse_object(text, head.end())
        if fenced:
            end = closed(text, end, "```", "<｜tool▁call▁end｜>")
        end = closed(text, end, "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>")
        return (ToolCall(head[1], arguments),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        return self.turn("", [call])

    def turn(self, before: str, calls: Sequence[ToolCall]) -> tuple[Piece, ...]:
        """All calls in one pair of tags."""
        pieces = [Piece(before)] if before else []
        for index, call in enumerate(calls):
            if index == 0:
                pieces.append(Piece("<｜tool▁calls▁begin｜>", True))
            elif self._is_fenced:
                pieces.append(Piece("\n", True))
            opening = "<｜tool▁call▁begin｜>" + ("function<｜tool▁sep｜>" if self._is_fenced else "")
            between, ending = ("\n```json\n", "\n```") if self._is_fenced else ("<｜tool▁sep｜>", "")
            pieces += [Piece(opening, True), Piece(call.name), Piece(between, True)]
            pieces += [Piece(to_json(dict(call.arguments))), Piece(f"{ending}<｜tool▁call▁end｜>", True)]
        return (*pieces, Piece("<｜tool▁calls▁end｜>", True)) if calls else tuple(pieces)

    def instructions(self) -> str:
        one = "".join(p.text for p in self.write(ToolCall("FUNCTION_NAME", {"ARGUMENT": "VALUE"})))
        return f"To call a function, write its name and its arguments as JSON exactly like this:\n{one}"


class Harmony(WrittenCalls):
    """A message to `functions.NAME` on the commentary channel (gpt-oss), the recipient before or after it."""

    thinking = ("<|channel|>analysis<|message|>", "<|end|>")
    speaks = frozenset({"<|start|>", "<|end|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|return|>"})
    invented = tuple(f"<|start|>{role}" for role in ("user", "system", "developer", "functions", "tool"))
    opening = re.compile(
        r"(?:\bto=(?P<first>[\w.-]+)\s*<\|channel\|>\w+|<\|channel\|>\w+\s+to=(?P<then>[\w.-]+))"
        r"[ \t]*(?:<\|constrain\|>[ \t]*)?(?:\w{1,12}[ \t]*)?<\|message\|>"
    )  # no two repetitions that could share the same blanks: those would be tried in every division
    _markup = re.compile(r"<\|start\|>assistant|<\|channel\|>\w+|<\|(?:message|end|return|constrain)\|>")

    def read(self, text: str, start: int) -> Found:
        header = self.opening.match(text, start)
        assert header is not None
        arguments, end = parse_object(text, skip_space(text, header.end()))
        end = closed(text, end, "<|call|>", "<|end|>", "<|start|>")
        name = (header["first"] or header["then"]).removeprefix("functions.")
        return (ToolCall(name, arguments),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """As the template writes it after the header of a turn."""
        return (
            Piece(" to=functions.", True),
            Piece(call.name),
            Piece("<|channel|>commentary json<|message|>", True),
            Piece(to_json(dict(call.arguments))),
        )

    def turn(self, before: str, calls: Sequence[ToolCall]) -> tuple[Piece, ...]:
        """Text is analysis before calls, else the final message. There can be one call."""
        pieces = []
        if before:
            channel = "analysis" if calls else "final"
            pieces = [Piece(f"<|channel|>{channel}<|message|>", True), Piece(before)]
        for index, call in enumerate(calls):
            if pieces:
                pieces.append(
                    Piece("<|call|><|start|>assistant" if index else "<|end|><|start|>assistant", True)
                )
            pieces += self.write(call)
        return tuple(pieces)

    def words(self, text: str) -> str:
        """Without the markup of messages."""
        return self._markup.sub("", text).strip()

    def instructions(self) -> str:
        """In the words of the template."""
        return "Calls to these tools must go to the commentary channel: 'functions'."


@dataclass(frozen=True, slots=True)
class Dialect:
    """The name of a way of writing calls, what makes it, and which chat templates describe it.

    Args:
        make: the format, for these tools.
        described: whether a chat template's source describes it.
        bound: whether a template describes it by tokens of its own, so that the model knows the format even
            where the template does not show the tools.
    """

    name: str
    make: Callable[[Sequence[Mapping[str, Any]]], WrittenCalls]
    described: Callable[[str], bool]
    bound: bool = False


_OURS = (
    Dialect(
        "harmony", lambda _: Harmony(), lambda source: "to=functions" in source or '"functions."' in source
    ),
    Dialect("gemma", lambda _: Gemma(), lambda source: "<|tool_call>call:" in source),
    Dialect("mistral_named", lambda _: Mistral(named=True), lambda source: "[ARGS]" in source),
    Dialect("mistral", lambda _: Mistral(named=False), lambda source: "[TOOL_CALLS]" in source),
    Dialect(
        "deepseek_v3",
        lambda _: DeepSeek(fenced=True),
        lambda source: "<｜tool▁call▁begin｜>" in source and "```json" in source,
        bound=True,
    ),
    Dialect(
        "deepseek_v31",
        lambda _: DeepSeek(fenced=False),
        lambda source: "<｜tool▁call▁begin｜>" in source,
        bound=True,
    ),
    Dialect("glm", Glm, lambda source: "<arg_key>" in source),
    Dialect("qwen_xml", QwenXml, lambda source: "<function=" in source),
    Dialect("hermes", lambda _: Hermes(), lambda source: "<tool_call>" in source and "arguments" in source),
    Dialect(
        "llama_json", lambda _: LlamaJson(), lambda source: '"parameters"' in source and '"name"' in source
    ),
)
"""In the order in which a template is asked; docs/models.md says which models write which."""

DIALECTS: Registry[Dialect] = Registry(
    "call_format",
    {dialect.name: dialect for dialect in _OURS},
    group="sandbox_rl.dialects",
    check=lambda thing: isinstance(thing, Dialect),
    expected="a sandbox_rl.chat.dialects.Dialect",
    special=("auto",),
)
"""The ways of writing calls that can be read."""

CALL_FORMATS = tuple(DIALECTS.ours)


def make(name: str, tools: Sequence[Mapping[str, Any]]) -> WrittenCalls:
    """The format called `name`, or at that import path.

    Raises:
        ConfigError: there is none.
    """
    return DIALECTS.find(name).make(tools)


def detect(template: str, *, shows_tools: bool = True) -> str | None:
    """The format that a chat template's source describes, None if it is none that is known.

    Args:
        shows_tools: whether it writes the tools into the prompt.
    """
    for name in (*DIALECTS.ours, *DIALECTS.installed):
        dialect = DIALECTS.find(name)
        if (shows_tools or dialect.bound) and dialect.described(template):
            return name
    return None
