"""The tools of an episode: whatever the policy calls, it gets an observation of bounded length."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sandbox_rl.registry import Registry
from sandbox_rl.sandboxes.base import ANSWER_FILE, AnswersCalls, Sandbox
from sandbox_rl.tools.arguments import CheckedTool, ToolArguments, escape_note
from sandbox_rl.tools.base import Tool
from sandbox_rl.tools.bash import ExecuteBash
from sandbox_rl.tools.editor import StrReplaceEditor
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS, clip, quote
from sandbox_rl.types import MalformedCall, Observation, ToolCall, ToolFailure

MAX_TURN_CHARS = 32_000
"""The observations of one turn together, but for `_LEAST` characters that each may always have: a turn of 64
calls whose output is hard to tokenise would otherwise keep a processor busy for seconds."""

_LEAST = 200


def fitted(observation: Observation, most: int) -> Observation:
    """`observation` with a text of at most `most` characters, or `_LEAST` if that is more."""
    marker = "[... left out: this turn's replies are long; make fewer calls at a time ...]"
    return _cut(observation, min(max(most, _LEAST), MAX_OBSERVATION_CHARS), marker)


def _cut(observation: Observation, most: int, marker: str = "") -> Observation:
    if len(observation.text) <= most:
        return observation
    text = clip(observation.text, most, max_lines=len(observation.text), marker=marker)
    return replace(observation, text=text[:most])


class Submit(CheckedTool[ToolArguments]):
    """Ends the episode; the answer file is read afterwards. Refused with arguments, which would not count."""

    name = "submit"
    description = f"Finish the task. Takes no arguments: the answer is read from {ANSWER_FILE}."
    arguments = ToolArguments
    hint = f" Write the answer to {ANSWER_FILE} first, then submit"

    async def _run(self, sandbox: Sandbox, given: ToolArguments, timeout: float) -> Observation:
        return Observation("Submitted.", tool=self.name, submitted=True)


class Toolbox:
    """Runs calls on a sandbox.

    Args:
        tools: their names must differ.
        exec_timeout: seconds that one call may run.

    Raises:
        ValueError: two tools share a name.
    """

    def __init__(self, tools: Sequence[Tool], *, exec_timeout: float = 120.0) -> None:
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) != len(tools):
            raise ValueError(f"tools must have different names, got {', '.join(t.name for t in tools)}")
        self._exec_timeout = exec_timeout
        self.schemas: tuple[Mapping[str, Any], ...] = tuple(tool.schema for tool in tools)

    async def run(self, sandbox: Sandbox, call: ToolCall | MalformedCall, *, timeout: float) -> Observation:
        """Answer one call; `timeout` is what is left of the episode, in seconds.

        Raises:
            SandboxFault: the host side failed. Nothing that the policy wrote raises.
        """
        return _cut(await self._answer(sandbox, call, timeout), MAX_OBSERVATION_CHARS)

    async def _answer(self, sandbox: Sandbox, call: ToolCall | MalformedCall, timeout: float) -> Observation:
        if isinstance(sandbox, AnswersCalls):
            return await sandbox.answer(call)
        if isinstance(call, MalformedCall):
            return Observation(call.reason, failure=ToolFailure.MALFORMED)
        tool = self._tools.get(call.name)
        if tool is None:
            near = difflib.get_close_matches(call.name[:80], self._tools, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return Observation(
                f"There is no tool {quote(call.name)}.{hint} The tools are {self._names}.",
                failure=ToolFailure.UNKNOWN_TOOL,
            )
        observation = await tool.run(sandbox, call.arguments, timeout=min(timeout, self._exec_timeout))
        if (note := escape_note(call.arguments)) is None:
            return observation
        observation = _cut(observation, MAX_OBSERVATION_CHARS - len(note) - 1)
        return replace(observation, text=f"{observation.text}\n{note}")

    def no_call(self, example: str = "") -> Observation:
        """What to say to a turn without a call; `example` shows how one is written."""
        text = f"Your turn holds no tool call. Every turn must call one of {self._names}."
        if Submit.name in self._tools:
            text += f" When the answer is in {ANSWER_FILE}, call submit."
        if example:
            text += f" Write a call exactly like this:\n{example}"
        return _cut(Observation(text, failure=ToolFailure.NO_CALL), MAX_OBSERVATION_CHARS)

    @property
    def _names(self) -> str:
        return ", ".join(self._tools)


TOOLS: Registry[Any] = Registry(
    "tool",
    {"execute_bash": ExecuteBash, "str_replace_editor": StrReplaceEditor, "submit": Submit},
    group="sandbox_rl.tools",
    check=lambda thing: all(hasattr(thing, part) for part in ("name", "schema", "run")),
    expected="a Tool (name, schema, run), or a class that makes one without arguments",
)
"""What a policy can be given to call."""

OUR_TOOLS = tuple(TOOLS.ours)


def make_toolbox(names: Sequence[str] = OUR_TOOLS, *, exec_timeout: float = 120.0) -> Toolbox:
    """The tools of these names, of `TOOLS` or import paths.

    Args:
        exec_timeout: seconds that one call may run.

    Raises:
        ConfigError: one of them is no tool.
        ValueError: two have one name.
    """
    found = [TOOLS.find(name) for name in names]
    tools = [tool() if isinstance(tool, type) else tool for tool in found]
    return Toolbox(tools, exec_timeout=exec_timeout)
