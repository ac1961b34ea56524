"""Settings of the chat format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from sandbox_rl.chat.dialects import DIALECTS
from sandbox_rl.errors import ConfigError
from sandbox_rl.settings import Settings


class ChatSettings(Settings):
    """How the conversation is rendered and how tool calls are read."""

    call_format: str = "auto"
    """How the model writes a tool call: a name, or `package.module:dialect` of your own; "auto" reads it off
    the chat template."""
    template_options: Mapping[str, Any] = Field(default_factory=dict)
    """Variables passed to the chat template, e.g. `{enable_thinking: false}`."""

    @field_validator("call_format")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            if name != "auto":
                DIALECTS.find(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return name
