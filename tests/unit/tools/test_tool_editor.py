"""The editor is byte-exact and answers every mistake with what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_rl.errors import FileProblem, SandboxFault, SandboxFileError
from sandbox_rl.fakes import RecordingSandbox
from sandbox_rl.tools.editor import MAX_FILE_BYTES, StrReplaceEditor
from sandbox_rl.types import Observation, ToolFailure

TEXTS = (
    "",
    "no newline",
    "a\n",
    "tab\tx\r\nCRLF\r\n",
    'it\'s "q" $HOME `id` \\n \\\\ %s\n',
    "é€😀\u200b\ufeff",
    "\ufeffmark first",
    "x" * 1_000_000,
    "'" * 5000,
    "EOF\nEOF\n",
    "nul \x00 inside",
)


async def edit(sandbox: RecordingSandbox, **arguments: Any) -> Observation:
    return await StrReplaceEditor().run(sandbox, arguments, timeout=5)


def sandbox_with(path: str, content: bytes) -> RecordingSandbox:
    return RecordingSandbox(files={f"/testbed/{path}": content})


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_create_is_byte_exact(text: str) -> None:
    sandbox = RecordingSandbox()
    observation = await edit(sandbox, command="create", path="/testbed/new/f", file_text=text)
    assert observation.failure is None
    assert sandbox.files["/testbed/new/f"] == text.encode()
    assert "exec" not in {c.method for c in sandbox.calls}


@given(before=st.text(max_size=30), after=st.text(max_size=30), new=st.text(max_size=30))
def test_replace_changes_nothing_else(before: str, after: str, new: str) -> None:
    old = "§old§"
    if old in before or old in after or new == old:
        return
    sandbox = sandbox_with("f", f"{before}{old}{after}".encode())
    observation = asyncio.run(edit(sandbox, command="str_replace", path="f", old_str=old, new_str=new))
    assert observation.failure is None
    assert sandbox.files["/testbed/f"] == f"{before}{new}{after}".encode()


async def test_replace_without_new_text_deletes() -> None:
    sandbox = sandbox_with("f", b"a b c")
    await edit(sandbox, command="str_replace", path="f", old_str=" b", new_str=None)
    assert sandbox.files["/testbed/f"] == b"a c"


async def test_insert_and_its_snippet() -> None:
    sandbox = sandbox_with("f", b"1\n2\n3\n")
    observation = await edit(sandbox, command="insert", path="f", insert_line=2, new_str="new")
    assert sandbox.files["/testbed/f"] == b"1\n2\nnew\n3\n"
    assert observation.text.endswith("     1\t1\n     2\t2\n     3\tnew\n     4\t3")


@pytest.mark.parametrize(
    ("arguments", "failure", "says"),
    [
        ({"command": "view", "path": "none"}, "file", "does not exist"),
        ({"command": "view", "path": "latin"}, "file", "not UTF-8 text (byte 0xe9 at offset 3)"),
        ({"command": "str_replace", "path": "latin", "old_str": "a", "new_str": "b"}, "file", "not UTF-8"),
        ({"command": "insert", "path": "latin", "insert_line": 0, "new_str": "b"}, "file", "not UTF-8"),
        ({"command": "insert", "path": "none", "insert_line": 0, "new_str": "b"}, "file", "does not exist"),
        ({"command": "insert", "path": "two", "insert_line": 3, "new_str": "b"}, "file", "has 2 lines"),
        ({"command": "insert", "path": "two", "insert_line": -1, "new_str": "b"}, "file", "use 0 to 2"),
        ({"command": "insert", "path": "two", "new_str": "b"}, "bad_arguments", "insert_line is missing"),
        ({"command": "insert", "path": "two", "insert_line": 0}, "bad_arguments", "new_str is missing"),
        ({"command": "insert", "path": "two", "insert_line": 0, "new_str": ""}, "bad_arguments", "is empty"),
        (
            {"command": "insert", "path": "two", "insert_line": True, "new_str": ""},
            "bad_arguments",
            "integer",
        ),
        (
            {"command": "insert", "path": "two", "insert_line": "1", "new_str": ""},
            "bad_arguments",
            "integer",
        ),
        ({"command": "create", "path": "two", "file_text": "x"}, "file", "exists already"),
        ({"command": "create", "path": "documents", "file_text": "x"}, "file", "is a directory"),
        ({"command": "create", "path": "two/three", "file_text": "x"}, "file", "lies below one"),
        ({"command": "create", "path": "new"}, "bad_arguments", "file_text is missing"),
        ({"command": "create", "path": "n" * 300, "file_text": "x"}, "file", "not a usable path"),
        (
            {"command": "str_replace", "path": "two", "old_str": "zz", "new_str": "b"},
            "file",
            "does not occur",
        ),
        ({"command": "str_replace", "path": "two", "old_str": "a", "new_str": "b"}, "file", "lines 1, 2)"),
        ({"command": "str_replace", "path": "aaa", "old_str": "aa", "new_str": "b"}, "file", "2 times"),
        (
            {"command": "str_replace", "path": "aaa", "old_str": "\n\n", "new_str": "b"},
            "file",
            "(lines 1, 2)",
        ),
        ({"command": "str_replace", "path": "two", "old_str": "", "new_str": "b"}, "bad_arguments", "empty"),
        ({"command": "str_replace", "path": "two", "old_str": "b", "new_str": "b"}, "bad_arguments", "same"),
        ({"command": "str_replace", "path": "two", "new_str": "b"}, "bad_arguments", "old_str is missing"),
        (
            {"command": "str_replace", "path": "crlf", "old_str": "a\nb", "new_str": "b"},
            "file",
            "write \\r\\n",
        ),
        ({"command": "view", "path": "two", "view_range": [1]}, "bad_arguments", "needs two"),
        ({"command": "view", "path": "two", "view_range": [0, 1]}, "bad_arguments", "between 1 and 2"),
        ({"command": "view", "path": "two", "view_range": [2, 1]}, "bad_arguments", "between 1 and 2"),
        ({"command": "view", "path": "two", "view_range": [3, -1]}, "bad_arguments", "has 2 lines"),
        ({"command": "view", "path": "two", "view_range": [1, "2"]}, "bad_arguments", 'not "2"'),
        ({"command": "view", "path": "two", "view_range": "1-2"}, "bad_arguments", "must be a list"),
        ({"command": "view", "path": "documents", "view_range": [1, 2]}, "file", "without view_range"),
        ({"command": "edit", "path": "two"}, "bad_arguments", 'not "edit"'),
        ({"command": "view", "file": "two"}, "bad_arguments", "path is missing; 'file' is not an argument"),
        ({"command": "view", "path": "two", "old_string": "x"}, "bad_arguments", "did you mean old_str?"),
        ({"command": "view", "path": " "}, "bad_arguments", "path is empty"),
        ({"command": "view", "path": "a\x00b"}, "bad_arguments", "NUL"),
        ({"command": "view", "path": "~/x"}, "bad_arguments", "not expanded"),
        ({"command": "view", "path": "\ud800"}, "bad_arguments", "half a surrogate pair"),
        ({"command": "create", "path": "x", "file_text": "\udfff"}, "bad_arguments", "half a surrogate pair"),
        ({"command": "view", "path": ["two"]}, "bad_arguments", 'must be a string, not ["two"]'),
        ({}, "bad_arguments", "command is missing; path is missing"),
    ],
)
async def test_every_mistake_is_reported_and_changes_nothing(
    arguments: Mapping[str, Any], failure: str, says: str
) -> None:
    files = {
        "/testbed/two": b"a b\na c\n",
        "/testbed/latin": "caf\u00e9".encode("latin-1"),
        "/testbed/crlf": b"a\r\nb\r\n",
        "/testbed/aaa": b"aaa\n\n\nb",
    }
    sandbox = RecordingSandbox(files=files)
    observation = await edit(sandbox, **arguments)
    assert observation.failure == failure
    assert says in observation.text
    assert len(observation.text) < 600
    assert sandbox.files == files


async def test_view_of_a_file() -> None:
    sandbox = sandbox_with("documents/a.txt", b"one\r\ntwo\r\n\x1b[31mthree")
    shown = (await edit(sandbox, command="view", path="documents/a.txt")).text
    assert shown == (
        "'/testbed/documents/a.txt', 3 lines (CRLF line ends), from line 1:\n"
        "     1\tone\n     2\ttwo\n     3\tthree"
    )
    part = (await edit(sandbox, command="view", path="documents/a.txt", view_range=[2, 99])).text
    assert part.endswith("from line 2:\n     2\ttwo\n     3\tthree")


async def test_view_of_an_empty_file() -> None:
    assert "is empty" in (await edit(sandbox_with("f", b""), command="view", path="f")).text


async def test_view_of_a_directory_is_two_levels_deep() -> None:
    files = {f"/testbed/{n}": b"" for n in ("a.txt", "d/b.txt", "d/e/c.txt", ".hidden/x")}
    shown = (await edit(RecordingSandbox(files=files), command="view", path=".")).text
    assert shown.split("\n")[1:] == [
        f"/testbed/{n}" for n in ("a.txt", "d/", "d/b.txt", "d/e/", "documents/")
    ]
    assert shown == (await edit(RecordingSandbox(files=files), command="view", path="/testbed//./")).text
    assert "empty directory" in (await edit(RecordingSandbox(), command="view", path="documents")).text


async def test_long_views_are_clipped() -> None:
    sandbox = sandbox_with("f", b"word " * 3 + b"\n" + b"line\n" * 100_000)
    shown = (await edit(sandbox, command="view", path="f")).text
    assert len(shown) <= 10_000
    assert "<response clipped>" in shown


async def test_a_file_too_large_is_refused() -> None:
    sandbox = sandbox_with("f", b"x" * (MAX_FILE_BYTES + 1))
    assert "too large for the editor" in (await edit(sandbox, command="view", path="f")).text
    assert "exists already" in (await edit(sandbox, command="create", path="f", file_text="")).text


async def test_a_dead_sandbox_is_reported() -> None:
    sandbox = RecordingSandbox()
    sandbox.dead = True
    assert (await edit(sandbox, command="view", path="f")).failure is ToolFailure.SANDBOX_DEAD


async def test_our_own_faults_are_raised() -> None:
    class Broken(RecordingSandbox):
        async def read_file(self, path: str, *, max_bytes: int) -> bytes:
            raise SandboxFault("host side")

    with pytest.raises(SandboxFault):
        await edit(Broken(), command="view", path="f")


@pytest.mark.parametrize("problem", FileProblem)
async def test_every_file_problem_has_words(problem: FileProblem) -> None:
    class Odd(RecordingSandbox):
        async def list_dir(self, path: str, *, max_entries: int) -> tuple[str, ...]:
            raise SandboxFileError(problem, "/testbed/x")

    observation = await edit(Odd(files={"/testbed/d/f": b""}), command="view", path="d")
    assert observation.failure is ToolFailure.FILE
    assert observation.text.startswith("'/testbed/x' ")


def test_the_schema_shows_every_argument_and_what_is_needed() -> None:
    function = StrReplaceEditor().schema["function"]
    properties = function["parameters"]["properties"]
    assert [name for name in properties if name in ("title", "default", "anyOf")] == []
    assert all(set(shown) <= {"type", "enum", "items", "description"} for shown in properties.values())
    assert properties["view_range"]["items"] == {"type": "integer"}
    assert properties["command"]["enum"] == ["view", "create", "str_replace", "insert"]
    assert function["parameters"]["required"] == ["command", "path"]
