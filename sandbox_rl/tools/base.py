"""What a tool is: a name, a schema that the policy sees, and a run that always answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.types import Observation


class Tool(Protocol):
    """One tool. `schema` is an OpenAI function schema: {"type": "function", "function": {...}}."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> Mapping[str, Any]: ...

    async def run(self, sandbox: Sandbox, arguments: Mapping[str, Any], *, timeout: float) -> Observation:
        """Validate `arguments`, do it, and say what happened in at most a bounded number of characters.

        Every mistake of the policy comes back as an Observation with `failure` set and a text that
        says what to do instead.

        Raises:
            SandboxFault: the host side failed; nothing else is ever raised.
        """
        ...
