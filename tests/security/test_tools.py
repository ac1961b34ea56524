"""IO-10 to IO-15: hostile arguments of tools against a real sandbox. Every call is answered with text."""

from __future__ import annotations

import random

import pytest

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.sandboxes.cases import HostWitness
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS
from sandbox_rl.tools.toolbox import make_toolbox
from sandbox_rl.types import MalformedCall, ToolCall, ToolFailure

from ..unit.chat.tokenizers_for_tests import tokenizer_for
from ..unit.tools.test_tool_editor import TEXTS

pytestmark = pytest.mark.asyncio(loop_scope="session")

MB = 1 << 20
TOOLBOX = make_toolbox()
EDITS = ("view", "create", "str_replace", "insert")


async def test_commands_that_are_none(backend: SandboxBackend) -> None:
    """IO-11."""
    async with backend.sandbox() as sandbox:
        for bad in ["echo a\x00b", "echo \ud800", 123, None, [], {"x": 1}, "", " ", 1e999, True, b"x"]:
            seen = await TOOLBOX.run(sandbox, ToolCall("execute_bash", {"command": bad}), timeout=60)
            assert seen.text.encode("utf-8")
        good = await TOOLBOX.run(sandbox, ToolCall("execute_bash", {"command": "echo fine"}), timeout=60)
        assert "fine" in good.text


async def test_paths_are_not_code(backend: SandboxBackend) -> None:
    """IO-12."""
    paths = [
        "/testbed/a; touch /testbed/PWNED #",
        "$(touch /testbed/PWNED)",
        "`touch /testbed/PWNED`",
        "-rf",
        "/testbed/x\n touch /testbed/PWNED",
        "/testbed/../etc/passwd",
        "~/x",
        "/testbed/" + "n" * 300,
        "/testbed/$(touch /testbed/PWNED)",
        "/testbed/'; touch /testbed/PWNED; '",
        "",
        "/",
        "/testbed/\0",
        "/proc/1/mem",
        "/dev/sda",
    ]
    async with backend.sandbox() as sandbox:
        for path in paths:
            for command in EDITS:
                arguments = {
                    "command": command,
                    "path": path,
                    "file_text": "t",
                    "old_str": "t",
                    "new_str": "u",
                    "insert_line": 0,
                }
                seen = await TOOLBOX.run(sandbox, ToolCall("str_replace_editor", arguments), timeout=60)
                assert seen.text.strip()
        assert (await sandbox.exec("test -e /testbed/PWNED", timeout=60)).exit_code == 1


@pytest.mark.parametrize("text", [*TEXTS, "\r", "\x0c\x1b[31m"], ids=lambda text: ascii(text)[:16])
async def test_editor_is_byte_exact(backend: SandboxBackend, text: str) -> None:
    """IO-13."""
    async with backend.sandbox() as sandbox:
        arguments = {"command": "create", "path": "/testbed/f", "file_text": text}
        await TOOLBOX.run(sandbox, ToolCall("str_replace_editor", arguments), timeout=60)
        assert await sandbox.read_file("/testbed/f", max_bytes=2 * MB) == text.encode()


async def test_editor_on_special_files(backend: SandboxBackend, witness: HostWitness) -> None:
    """IO-14."""
    prepare = (
        "mkfifo fifo; ln -s /dev/zero zero; ln -s loop2 loop2; ln -s /proc/self/environ env; "
        "truncate -s 200M sparse; mkdir dir; chmod 000 dir; head -c 9999 /dev/urandom >binary; "
        f"ln -s {witness.path} canary; python3 -c 'import socket;socket.socket(1).bind(\"s\")'"
    )
    async with backend.sandbox() as sandbox:
        await sandbox.exec(prepare, timeout=60)
        for name in ("fifo", "zero", "loop2", "env", "sparse", "dir", "binary", "canary", "s"):
            for command in EDITS:
                arguments = {
                    "command": command,
                    "path": f"/testbed/{name}",
                    "file_text": "t",
                    "old_str": "a",
                    "new_str": "b",
                    "insert_line": 0,
                }
                seen = await TOOLBOX.run(sandbox, ToolCall("str_replace_editor", arguments), timeout=60)
                assert seen.failure is not ToolFailure.TIMEOUT, (name, command)
                assert seen.text.strip()
                assert len(seen.text) <= MAX_OBSERVATION_CHARS
                assert witness.canary not in seen.text


async def test_visible_output_is_clean_and_bounded(backend: SandboxBackend) -> None:
    """IO-01 to IO-05 as the policy sees them."""
    commands = {
        "yes": 2.0,
        "head -c 50000000 /dev/zero | tr '\\0' A": 60.0,
        "head -c 4096 /dev/urandom; printf '\\xff\\xfe\\x00\\x01\\xc3\\x28\\xed\\xa0\\x80'": 60.0,
        "python3 -c 'print(\"\\u00e9\\u20ac\\U0001f600\"*60000)'": 60.0,
        "printf '\\033]0;pwn\\007\\033[2J\\033[31mred\\033[0m\\r\\b\\033[6n\\033P$q\\033\\\\end\\n'": 60.0,
        "seq 1000000": 60.0,
        "seq 1000000 >&2; seq 1000000": 60.0,
    }
    async with backend.sandbox() as sandbox:
        for command, timeout in commands.items():
            seen = await TOOLBOX.run(sandbox, ToolCall("execute_bash", {"command": command}), timeout=timeout)
            assert len(seen.text) <= MAX_OBSERVATION_CHARS, command
            assert not set(seen.text) & set(map(chr, [*range(9), 11, 12, *range(14, 32), 127])), command
            assert "\r" not in seen.text
            seen.text.encode("utf-8")
        last = await TOOLBOX.run(
            sandbox, ToolCall("execute_bash", {"command": list(commands)[4]}), timeout=10
        )
        assert "red" in last.text
        assert "end" in last.text


async def test_10000_malformed_calls(backend: SandboxBackend) -> None:
    """IO-15: parsing never raises, no malformed call submits, and each can be answered."""
    form = ChatFormat.from_tokenizer(tokenizer_for("qwen3"), TOOLBOX.schemas)
    tokenizer = tokenizer_for("qwen3")
    rng = random.Random(0)
    seeds = [
        '{"name":"execute_bash","arguments":{"command":"echo hi"}}',
        "[]",
        '{"name":null}',
        '{"name":"submit","arguments":"x"}',
        '{"name":"nope","arguments":{}}',
        '{"arguments":{}}',
        "{" * 500,
        "[{}]",
        '{"name":"submit","arguments":{"a":1}}',
    ]
    kinds = set()
    async with backend.sandbox() as sandbox:
        for _ in range(10_000):
            text = rng.choice(seeds)
            at = rng.randrange(len(text) + 1)
            junk = rng.choice(["", '"', "}", "\\", "\x00", ",", "NaN", "1e999", "</tool_call>", "{", "]"])
            text = text[:at] + junk + text[at + rng.randrange(3) :]
            ids = tokenizer.encode(f"<tool_call>\n{text}\n</tool_call>", add_special_tokens=False)
            for call in form.parse(ids):
                kinds.add(type(call))
                if isinstance(call, MalformedCall) or call.name != "execute_bash":
                    seen = await TOOLBOX.run(sandbox, call, timeout=60)
                    assert seen.text
                    assert not (isinstance(call, MalformedCall) and seen.submitted)
    assert kinds == {MalformedCall, ToolCall}
