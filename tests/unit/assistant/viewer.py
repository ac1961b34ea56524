"""A viewer that keeps what it is shown, as lines."""

from __future__ import annotations

from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.types import MalformedCall, Observation, StopReason, ToolCall


class Notes:
    """Stands for `assistant.view.TerminalView`."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def opened(self, info: SandboxInfo, files: int) -> None:
        self.seen.append(f"opened {info.backend} {files}")

    def thinking(self) -> None:
        self.seen.append("thinking")

    def sampled(self, reasoning: str, words: str) -> None:
        self.seen.append(f"said {reasoning}|{words}")

    def calling(self, call: ToolCall | MalformedCall) -> None:
        self.seen.append(f"calling {call.name if isinstance(call, ToolCall) else 'malformed'}")

    def observed(self, observation: Observation) -> None:
        self.seen.append(f"observed {observation.failure or observation.tool}")

    def ended(self, stop: StopReason, answer: str | None) -> None:
        self.seen.append(f"ended {stop.value} {answer}")
