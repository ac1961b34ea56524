"""A tool of your own: `tools: [execute_bash, submit, "own_tool:CountWords"]`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from sandbox_rl import Observation, Sandbox, ToolFailure


class CountWords:
    """Counts the words of a file. It works in the episode's sandbox, never on the host."""

    name = "count_words"
    schema: Mapping[str, Any] = {
        "type": "function",
        "function": {
            "name": name,
            "description": "Count the words of a file.",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}},
                "required": ["path"],
            },
        },
    }

    async def run(self, sandbox: Sandbox, arguments: Mapping[str, Any], *, timeout: float) -> Observation:
        """What the policy does wrong comes back as an observation; too long a text is cut for every tool."""
        path = arguments.get("path")
        if not isinstance(path, str) or "\0" in path:
            text = "count_words needs `path`, the path of a file."
            return Observation(text, tool=self.name, failure=ToolFailure.BAD_ARGUMENTS)
        result = await sandbox.exec(f"wc -w < {shlex.quote(path)}", timeout=timeout)
        said = (result.stdout.head or result.stderr.head).decode(errors="replace").strip()
        return Observation(said, tool=self.name, exit_code=result.exit_code, seconds=result.seconds)
