"""The toolbox answers whatever the policy calls; only our own faults escape."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import pytest

from sandbox_rl.errors import ConfigError, SandboxFault
from sandbox_rl.fakes import ExecAnswer, RecordingBackend, RecordingSandbox, exec_ok
from sandbox_rl.sandboxes.base import ANSWER_FILE
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS
from sandbox_rl.tools.toolbox import Submit, Toolbox, make_toolbox
from sandbox_rl.types import (
    ExecResult,
    ExecStatus,
    MalformedCall,
    Observation,
    Stream,
    ToolCall,
    ToolFailure,
)

TOOLBOX = make_toolbox()


async def call(
    name: str, arguments: Mapping[str, Any], answer: ExecAnswer | None = None, timeout: float = 9
) -> Observation:
    return await TOOLBOX.run(RecordingSandbox(answer_exec=answer), ToolCall(name, arguments), timeout=timeout)


async def bash(result: ExecResult) -> Observation:
    return await call("execute_bash", {"command": "x"}, lambda _: result)


def test_names_and_parameters_are_the_papers() -> None:
    shapes = {
        s["function"]["name"]: sorted(s["function"]["parameters"]["properties"]) for s in TOOLBOX.schemas
    }
    assert shapes == {
        "execute_bash": ["command"],
        "str_replace_editor": sorted(
            ["command", "path", "file_text", "old_str", "new_str", "insert_line", "view_range"]
        ),
        "submit": [],
    }


async def test_a_command_is_reported_with_exit_code_and_streams() -> None:
    done = await bash(exec_ok("out\n", "err\n", exit_code=3))
    assert done.text == "Exit code: 3\n[STDOUT]\nout\n[STDERR]\nerr"
    assert (done.exit_code, done.failure, done.tool) == (3, None, "execute_bash")
    assert (await bash(exec_ok("out"))).text == "Exit code: 0\n[STDOUT]\nout"
    assert (await bash(exec_ok())).text == "Exit code: 0\n[STDOUT]"


@pytest.mark.parametrize(
    ("status", "failure", "says"),
    [
        (ExecStatus.TIMEOUT, ToolFailure.TIMEOUT, "ran longer than 9 s"),
        (ExecStatus.OOM, ToolFailure.OOM, "more memory"),
        (ExecStatus.OUTPUT_LIMIT, None, "Redirect its output"),
        (ExecStatus.SANDBOX_DEAD, ToolFailure.SANDBOX_DEAD, "no longer answers"),
    ],
)
async def test_an_unfinished_command_is_explained(
    status: ExecStatus, failure: ToolFailure | None, says: str
) -> None:
    observation = await bash(ExecResult(status, stdout=Stream(b"part", total_bytes=4)))
    assert observation.failure is failure
    assert says in observation.text
    assert ("part" in observation.text) == (status is not ExecStatus.SANDBOX_DEAD)


async def test_two_floods_stay_within_the_limit() -> None:
    flood = Stream(b"x" * 500_000, b"y" * 500_000, 3_000_000)
    text = (await bash(ExecResult(ExecStatus.OK, 0, flood, flood))).text
    assert 9_000 < len(text) <= 10_000
    only = (await bash(ExecResult(ExecStatus.OK, 0, Stream(), flood))).text
    assert 9_000 < len(only) <= 10_000


async def test_control_tokens_split_over_the_streams_stay_apart_or_plain() -> None:
    text = (await bash(exec_ok("<|im_", "end|>\x1b[0m\x00"))).text
    assert text == "Exit code: 0\n[STDOUT]\n<|im_\n[STDERR]\nend|>"


@pytest.mark.parametrize(
    "bad", ["echo a\x00b", "echo \ud800", 123, None, [], {"x": 1}, "", " ", "x" * 200_000]
)
async def test_a_bad_command_is_reported_and_not_run(bad: object) -> None:
    sandbox = RecordingSandbox()
    observation = await TOOLBOX.run(sandbox, ToolCall("execute_bash", {"command": bad}), timeout=9)
    assert observation.failure is ToolFailure.BAD_ARGUMENTS
    assert observation.text.encode()
    assert len(observation.text) < 400
    assert sandbox.commands == ()


async def test_a_command_runs_elsewhere_when_the_working_directory_cannot_be_entered() -> None:
    locked = ExecResult(ExecStatus.OK, 126, stderr=Stream(b"cannot start in /testbed: Permission denied\n"))
    answers = iter((locked, exec_ok(b"/\n")))
    sandbox = RecordingSandbox(answer_exec=lambda _: next(answers))
    observation = await TOOLBOX.run(sandbox, ToolCall("execute_bash", {"command": "pwd"}), timeout=9)
    assert [c.arguments["cwd"] for c in sandbox.calls] == ["/testbed", "/"]
    assert observation.text.startswith(
        "/testbed cannot be entered (Permission denied), so the command ran in /."
    )
    assert "[STDOUT]\n/" in observation.text
    # What a command prints is no such reply: it has taken time.
    printed = ExecResult(ExecStatus.OK, 126, stderr=locked.stderr, seconds=0.001)
    sandbox = RecordingSandbox(answer_exec=lambda _: printed)
    assert (
        await TOOLBOX.run(sandbox, ToolCall("execute_bash", {"command": "x"}), timeout=9)
    ).exit_code == 126
    assert len(sandbox.calls) == 1


async def test_the_time_limit_is_the_smaller_one() -> None:
    sandbox = RecordingSandbox()
    toolbox = make_toolbox(exec_timeout=7)
    for left in (100.0, 3.0):
        await toolbox.run(sandbox, ToolCall("execute_bash", {"command": "x"}), timeout=left)
    assert [c.arguments["timeout"] for c in sandbox.calls] == [7, 3]


async def test_a_slow_command_times_out() -> None:
    async def slow(_: str) -> ExecResult:
        await asyncio.sleep(5)
        return exec_ok()

    assert (await call("execute_bash", {"command": "x"}, slow, 0.01)).failure is ToolFailure.TIMEOUT


async def test_submit_ends_and_refuses_arguments() -> None:
    assert (await call("submit", {})).submitted
    refused = await call("submit", {"answer": "42"})
    assert not refused.submitted
    assert refused.failure is ToolFailure.BAD_ARGUMENTS
    assert ANSWER_FILE in refused.text


async def test_unknown_tools_and_malformed_calls_are_reported() -> None:
    unknown = await call("<|im_end|>", {})
    assert unknown.failure is ToolFailure.UNKNOWN_TOOL
    assert "execute_bash, str_replace_editor, submit" in unknown.text
    assert "Did you mean execute_bash?" in (await call("execute-bash", {})).text
    assert len((await call("x" * 100_000, {})).text) < 300
    malformed = await TOOLBOX.run(RecordingSandbox(), MalformedCall("why" * 10_000), timeout=1)
    assert malformed.failure is ToolFailure.MALFORMED
    assert len(malformed.text) <= MAX_OBSERVATION_CHARS


async def test_a_backslash_that_json_read_as_an_escape_is_reported() -> None:
    done = await call(
        "execute_bash", {"command": "echo '\boxed{7}' > answer.txt"}, lambda _: exec_ok(b"done\n")
    )
    assert done.failure is None
    assert done.text.endswith(
        "\ndone\nNote: command arrived with the control character U+0008 before 'oxed{7}' > answer.tx': in a "
        "JSON string a backslash and a letter mean that. For a backslash write two."
    )
    kept = await call(
        "execute_bash", {"command": r"echo '\boxed{7}' > answer.txt"}, lambda _: exec_ok(b"done\n")
    )
    assert "Note" not in kept.text
    long = await Toolbox((Wordy(),)).run(RecordingSandbox(), ToolCall("wordy", {"x": "\f"}), timeout=9)
    assert len(long.text) <= MAX_OBSERVATION_CHARS
    assert "U+000C" in long.text


class Wordy:
    """Says as much as a tool may."""

    name = "wordy"
    schema: Mapping[str, Any] = {"type": "function", "function": {"name": "wordy"}}

    async def run(self, sandbox: Any, arguments: Mapping[str, Any], *, timeout: float) -> Observation:
        return Observation("x" * MAX_OBSERVATION_CHARS, tool=self.name)


def test_a_turn_without_a_call_is_told_how_to_go_on() -> None:
    assert TOOLBOX.no_call().failure is ToolFailure.NO_CALL
    assert TOOLBOX.no_call("EXAMPLE").text.endswith("EXAMPLE")


def test_wrong_set_ups_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        Toolbox([Submit(), Submit()])
    with pytest.raises(ConfigError, match="tool 'execute_bsh' is unknown: did you mean 'execute_bash'"):
        make_toolbox(["execute_bsh"])


async def test_our_own_faults_are_raised() -> None:
    def broken(_: str) -> ExecResult:
        raise SandboxFault("host side")

    with pytest.raises(SandboxFault):
        await call("execute_bash", {"command": "x"}, broken)


async def test_ten_thousand_odd_calls_are_all_answered() -> None:
    rng = random.Random(0)
    values = [
        "",
        "x",
        "\ud800",
        "\x00",
        "a" * 9000,
        0,
        -1,
        10**30,
        1.5,
        True,
        None,
        [],
        [1, 2],
        {},
        {"a": {}},
    ]
    keys = [
        "command",
        "path",
        "file_text",
        "old_str",
        "new_str",
        "insert_line",
        "view_range",
        "\udfff",
        "",
        "x",
    ]
    names = ["execute_bash", "str_replace_editor", "submit", "", "\ud800"]
    sandbox = RecordingSandbox()
    for _ in range(10_000):
        arguments = {rng.choice(keys): rng.choice(values) for _ in range(rng.randrange(5))}
        if rng.random() < 0.5:
            arguments |= {"command": rng.choice(["view", "create", "str_replace", "insert"]), "path": "f"}
        made = ToolCall(rng.choice(names), arguments)
        observation = await TOOLBOX.run(sandbox, made, timeout=1)
        assert observation.text.encode()
        assert len(observation.text) <= MAX_OBSERVATION_CHARS
        assert observation.submitted == (made.name == "submit" and not arguments)


async def test_the_recording_backend_frees_and_fails_as_told() -> None:
    async with RecordingBackend(fail_first=1) as backend:
        with pytest.raises(SandboxFault):
            async with backend.sandbox():
                pass
        with pytest.raises(ValueError, match="relative"):
            async with backend.sandbox({"../x": b""}):
                pass
        async with backend.sandbox({"d/a.txt": b"1"}) as sandbox:
            assert backend.alive == {sandbox.id}
            assert await sandbox.get_files("/testbed/documents", max_bytes=9) == {"d/a.txt": b"1"}
            await sandbox.write_file(ANSWER_FILE, b"\xef\xbb\xbf42\n")
            assert (await sandbox.read_answer()).text == "42\n"
        assert backend.alive == set()
