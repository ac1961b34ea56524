"""Words that the chat format adds of its own: tools where the template shows none, and an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_rl.chat.calls import to_json
from sandbox_rl.types import ToolCall

__all__ = ["example_call", "tool_words"]


def tool_words(tools: Sequence[Mapping[str, Any]], instructions: str) -> str:
    """What to tell a model whose template does not tell it about its tools."""
    parts = [instructions] if instructions else []
    if tools:
        schemas = "\n".join(to_json(t) for t in tools)
        parts.insert(
            0,
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
            "provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{schemas}\n</tools>",
        )
    return "\n\n".join(parts)


def example_call(tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """A call of the first tool with its required string parameters."""
    if not tools:
        return ToolCall("NAME", {})
    function = tools[0]["function"]
    required = function.get("parameters", {}).get("required", ())
    return ToolCall(function["name"], {k: "ls" if k == "command" else "..." for k in required})
