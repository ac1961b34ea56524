"""No observation is longer than the cap, whatever is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sandbox_rl.fakes import RecordingSandbox, exec_ok
from sandbox_rl.tools.editor import StrReplaceEditor
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS
from sandbox_rl.tools.toolbox import Toolbox, make_toolbox
from sandbox_rl.types import ExecResult, ExecStatus, MalformedCall, Observation, ToolCall

LONG = "/testbed/" + "/".join(["d" * 200] * 15)
FILES = {
    "/testbed/one_line": b"x" * 900_000,
    "/testbed/many_lines": b"\n" * 900_000,
    "/testbed/wide": ("\U0001f600" * 40_000 + "\n").encode() * 4,
    LONG + "/f": b"1",
    **{f"/testbed/dir/{'n' * 200}{i}": b"" for i in range(600)},
}
EDITOR: dict[str, Mapping[str, Any]] = {
    "a long line": {"command": "view", "path": "/testbed/one_line"},
    "many lines": {"command": "view", "path": "/testbed/many_lines"},
    "wide characters": {"command": "view", "path": "/testbed/wide"},
    "a directory of many": {"command": "view", "path": "/testbed/dir"},
    "a missing path": {"command": "view", "path": LONG * 200},
    "a long path": {"command": "view", "path": LONG + "/f"},
    "an edit": {
        "command": "insert",
        "path": "/testbed/many_lines",
        "insert_line": 5,
        "new_str": "y" * 100_000,
    },
    "no such command": {"command": "v" * 900_000, "path": "/"},
    "a name that is no argument": {"command": "view", "path": "/", "p" * 900_000: 1},
    "a swallowed backslash": {"command": "view", "path": "/testbed/one_line", "old_str": "\f" + "r" * 9_000},
}
OUTPUTS = {
    "one stream": exec_ok("x" * 900_000),
    "two streams": exec_ok("x\n" * 400_000, "y" * 900_000),
    "no such directory": exec_ok("", "cannot start in /testbed: " + "z" * 900_000, exit_code=126),
    "late": ExecResult(ExecStatus.TIMEOUT, stdout=exec_ok("x" * 900_000).stdout, seconds=9.0),
}
CALLS = {
    **{f"editor: {name}": ToolCall("str_replace_editor", given) for name, given in EDITOR.items()},
    "submit: arguments": ToolCall("submit", {"a" * 900_000: "b" * 900_000}),
    "bash: no command": ToolCall("execute_bash", {"command": "", "x" * 900_000: 1}),
    "bash: too long": ToolCall("execute_bash", {"command": "y" * 900_000}),
    "no such tool": ToolCall("z" * 900_000, {}),
    "malformed": MalformedCall("why" * 300_000),
}


class Wordy:
    """A tool of one's own that bounds nothing."""

    name = "wordy"
    schema: Mapping[str, Any] = {"type": "function", "function": {"name": "wordy"}}

    async def run(self, sandbox: Any, arguments: Mapping[str, Any], *, timeout: float) -> Observation:
        return Observation("x" * 900_000, tool=self.name)


@pytest.mark.parametrize("name", CALLS)
async def test_a_reply_is_within_the_cap(name: str) -> None:
    reply = await make_toolbox().run(RecordingSandbox(files=FILES), CALLS[name], timeout=9)
    assert 0 < len(reply.text) <= MAX_OBSERVATION_CHARS


@pytest.mark.parametrize("name", OUTPUTS)
async def test_the_output_of_a_command_is_within_the_cap(name: str) -> None:
    sandbox = RecordingSandbox(answer_exec=lambda _: OUTPUTS[name])
    reply = await make_toolbox().run(sandbox, ToolCall("execute_bash", {"command": "x"}), timeout=9)
    assert 0 < len(reply.text) <= MAX_OBSERVATION_CHARS


@pytest.mark.parametrize("name", [name for name in EDITOR if name != "a swallowed backslash"])
async def test_the_editor_keeps_to_the_cap_by_itself(name: str) -> None:
    reply = await StrReplaceEditor().run(RecordingSandbox(files=FILES), EDITOR[name], timeout=9)
    assert 0 < len(reply.text) <= MAX_OBSERVATION_CHARS


@pytest.mark.parametrize("arguments", [{}, {"x": "\f" + "r" * 100_000}])
async def test_a_tool_of_ones_own_is_cut(arguments: Mapping[str, Any]) -> None:
    reply = await Toolbox([Wordy()]).run(RecordingSandbox(), ToolCall("wordy", arguments), timeout=9)
    assert len(reply.text) <= MAX_OBSERVATION_CHARS
    assert ("U+000C" in reply.text) is bool(arguments)
    assert len(Toolbox([Wordy()]).no_call("e" * 900_000).text) <= MAX_OBSERVATION_CHARS
