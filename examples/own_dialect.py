"""A dialect of your own: `chat: {call_format: "own_dialect:DIALECT"}`; calls are `@@name {"argument": …}`."""

from __future__ import annotations

import json
import re

from sandbox_rl import BrokenCall, Dialect, Piece, ToolCall, WrittenCalls, parse_object


class AtSigns(WrittenCalls):
    """One call on a line: two at-signs, the name, the arguments as a JSON object."""

    opening = re.compile(r"^@@", re.MULTILINE)
    _head = re.compile(r"@@([\w.-]+) *(?=\{)")

    def read(self, text: str, start: int) -> tuple[tuple[ToolCall, ...], int]:
        """The call at `start`, and where it ends."""
        head = self._head.match(text, start)
        if head is None:
            raise BrokenCall("a tool's name and a JSON object must follow @@")
        arguments, end = parse_object(text, head.end())
        return (ToolCall(head[1], arguments),), end

    def write(self, call: ToolCall) -> tuple[Piece, ...]:
        """Signs are trusted text; what a policy could have written is not."""
        return Piece("@@", True), Piece(f"{call.name} {json.dumps(dict(call.arguments))}")

    def instructions(self) -> str:
        """What the model is told where its template does not describe the format."""
        return 'To call a function, write a line like this: @@FUNCTION_NAME {"ARGUMENT": "VALUE"}'


DIALECT = Dialect("at_signs", lambda tools: AtSigns(), described=lambda template: "@@" in template)
