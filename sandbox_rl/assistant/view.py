"""What a person sees of a conversation: thought, action and observation, each as it happens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.text import Text

from sandbox_rl.sandboxes.base import INPUT_DIR, SandboxInfo
from sandbox_rl.tools.text import clean, clip
from sandbox_rl.types import MalformedCall, Observation, StopReason, ToolCall

MAX_LINES = 40
MAX_CHARS = 6_000
"""Of one thought, action or observation on the screen; the trajectory has all of it."""

_DIRECTIONS = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
"""Marks that turn the direction of writing: they make text look like other text."""

_ENDS = {
    StopReason.SUBMITTED: "Submitted.",
    StopReason.MAX_TURNS: "Ended: all turns are used up (episode.max_turns).",
    StopReason.MAX_TOKENS: "Ended: the tokens or the model's context are used up (episode.max_tokens).",
    StopReason.TIMEOUT: "Ended: the time is up (episode.timeout_s).",
    StopReason.SANDBOX_DEAD: "Ended: the model destroyed its sandbox.",
    StopReason.INFRA_FAULT: "Ended by a fault.",
}


def shown(text: str) -> str:
    """`text` fit for a terminal: no escape sequences, control characters or turned directions."""
    return _DIRECTIONS.sub("", clean(text))


class TerminalView:
    """Shows a conversation as it happens, with rich; plain lines where there is no terminal.

    Texts are the policy's: they are cleaned before they are shown.

    Args:
        answers: whether the answer of each exchange is shown, too.
    """

    def __init__(self, console: Console, *, answers: bool) -> None:
        self._console = console
        self._answers = answers
        self._waiting: Progress | None = None
        self._turn = 0
        self._asked = False

    def say(self, text: str, style: str = "") -> None:
        """One line of news."""
        self._stop_waiting()
        self._console.print(Text(shown(text), style=style), soft_wrap=True)

    def say_some(self, title: str, lines: Sequence[str]) -> None:
        """A line each, the first twenty of them; a name cannot pass for a line of its own."""
        for line in lines[:20]:
            self.say(f"{title}: {line}".replace("\n", " "), "yellow")
        if len(lines) > 20:
            self.say(f"{title}: {len(lines) - 20} more", "yellow")

    def ask(self) -> None:
        """The mark behind which the user types."""
        self._stop_waiting()
        hint = "" if self._asked else "(Ctrl-D ends)\n"
        self._asked = True
        self._console.print(Text(f"\n{hint}> ", style="bold"), end="")

    def opened(self, info: SandboxInfo, files: int) -> None:
        """Where it happens."""
        placed = f", {files} of your files in {INPUT_DIR}" if files else ""
        self.say(f"Sandbox: {info.backend}, {info.tier}{placed}", "dim")
        for sentence in info.lacks:
            self.say(f"  {sentence}", "dim")

    def thinking(self) -> None:
        """A rule for the new turn and, in a terminal, a clock that runs while the policy is at work."""
        self._stop_waiting()
        self._turn += 1
        self._console.print(Rule(f"turn {self._turn}", align="left", style="dim"))
        if self._console.is_terminal:
            self._waiting = Progress(
                SpinnerColumn(),
                TextColumn("thinking"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._waiting.start()
            self._waiting.add_task("")

    def sampled(self, reasoning: str, words: str) -> None:
        """Reasoning dim, words plain."""
        self._stop_waiting()
        if reasoning.strip():
            self._block(reasoning, "dim italic")
        if words.strip():
            self._block(words)

    def calling(self, call: ToolCall | MalformedCall) -> None:
        """A shell command as one would type it, everything else by its arguments."""
        self._stop_waiting()
        if isinstance(call, MalformedCall):
            self._block("(a tool call that cannot be read)", "yellow")
        elif call.name == "execute_bash" and isinstance(call.arguments.get("command"), str):
            self._block(f"$ {call.arguments['command']}", "bold cyan", indent=2)
        else:
            self._block(f"{call.name} {_arguments(call.arguments)}".rstrip(), "bold cyan", indent=2)

    def observed(self, observation: Observation) -> None:
        """The observation, and how long it took if it took long."""
        self._stop_waiting()
        if observation.submitted:
            return
        self._block(observation.text, "yellow" if observation.failure else "green", indent=4)
        if observation.seconds >= 1:
            self._block(f"({observation.seconds:.1f} s)", "dim", indent=4)

    def ended(self, stop: StopReason, answer: str | None) -> None:
        """Why, where that is news, and the answer so far."""
        self._stop_waiting()
        if stop is not StopReason.SUBMITTED:
            self.say(_ENDS[stop], "yellow")
        elif answer is not None and self._answers:
            self._console.print(Rule("answer", align="left", style="bold"))
            self._block(answer, "bold")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._stop_waiting()

    def _block(self, text: str, style: str = "", *, indent: int = 0) -> None:
        cut = clip(shown(text).strip("\n"), MAX_CHARS, max_lines=MAX_LINES)
        self._console.print(Padding(Text(cut, style=style), (0, 0, 0, indent), expand=False))

    def _stop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.stop()


def _arguments(arguments: Mapping[str, Any]) -> str:
    """`key=value` by turns; texts of several lines begin on a line of their own."""
    parts = []
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        parts.append(f"\n{key}:\n{text}\n" if "\n" in text else f"{key}={text}")
    return " ".join(parts)
