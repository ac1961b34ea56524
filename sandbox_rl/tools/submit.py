"""`submit`: the episode is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox_rl.sandboxes.base import ANSWER_FILE, Sandbox
from sandbox_rl.tools.arguments import BadArgumentsError, ToolArguments, bad_arguments, read_arguments
from sandbox_rl.types import Observation

__all__ = ["Submit"]


class Submit:
    """Ends the episode; the answer file is read afterwards."""

    name = "submit"

    @property
    def schema(self) -> Mapping[str, Any]:
        """The OpenAI function schema."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": f"Finish the task. Takes no arguments: the answer is read from {ANSWER_FILE}.",
                "parameters": {"type": "object", "properties": {}, "required": []},
            },
        }

    async def run(self, sandbox: Sandbox, arguments: Mapping[str, Any], *, timeout: float) -> Observation:
        """Accept, unless arguments are given: then the model expects them to count."""
        del sandbox, timeout
        try:
            read_arguments(ToolArguments, self.name, arguments)
        except BadArgumentsError as error:
            text = BadArgumentsError(f"{error} Write the answer to {ANSWER_FILE} first, then submit")
            return bad_arguments(self.name, text)
        return Observation("Submitted.", tool=self.name, submitted=True)
