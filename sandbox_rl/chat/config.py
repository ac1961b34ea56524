"""Settings of the chat format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sandbox_rl.settings import Settings

__all__ = ["ChatSettings"]


class ChatSettings(Settings):
    """How the conversation is rendered and how tool calls are read."""

    call_format: Literal[
        "auto",
        "hermes",
        "qwen_xml",
        "llama_json",
        "glm",
        "mistral",
        "mistral_named",
        "deepseek_v3",
        "deepseek_v31",
        "harmony",
        "gemma",
    ] = "auto"
    """How the model writes a tool call; "auto" reads it off the chat template."""
    template_options: Mapping[str, Any] = Field(default_factory=dict)
    """Variables passed to the chat template, e.g. `{enable_thinking: false}`."""
