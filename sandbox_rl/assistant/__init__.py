"""One person, one question, one sandbox: files in, a live view, results out (`sandbox-rl run`)."""

from sandbox_rl.assistant.assist import Assisted, AssistRequest, assist
from sandbox_rl.assistant.settings import AssistantSettings, load_assistant
from sandbox_rl.assistant.view import TerminalView, shown

__all__ = [
    "AssistRequest",
    "AssistantSettings",
    "Assisted",
    "TerminalView",
    "assist",
    "load_assistant",
    "shown",
]
