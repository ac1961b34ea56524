"""What reaches the terminal, and what is read from it."""

from __future__ import annotations

import asyncio
import io
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sandbox_rl.assistant.keyboard import Keyboard
from sandbox_rl.assistant.view import TerminalView, shown
from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.types import MalformedCall, Observation, StopReason, ToolCall, ToolFailure

EVIL = "\x1b[2J\x1b]0;title\x07a\x9b31mb\rc\x08\x00d\u202ee\x1b]8;;http://x\x1b\\f\ud800"


def view_of(*, answers=True, terminal=False):
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, color_system=None)
    return TerminalView(console, answers=answers), out


@given(st.text())
def test_no_control_character_reaches_the_terminal(text):
    cleaned = shown(text)
    assert not any(c != "\n" and c != "\t" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in cleaned)
    assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in cleaned)
    cleaned.encode()


@pytest.mark.parametrize(
    "show",
    [
        lambda v: v.sampled(EVIL, EVIL),
        lambda v: v.calling(ToolCall("execute_bash", {"command": EVIL})),
        lambda v: v.calling(ToolCall(EVIL, {EVIL: EVIL, "n": [EVIL]})),
        lambda v: v.calling(MalformedCall(EVIL)),
        lambda v: v.observed(Observation(EVIL, failure=ToolFailure.FILE, seconds=2.5)),
        lambda v: v.ended(StopReason.SUBMITTED, EVIL),
        lambda v: v.opened(SandboxInfo("b", "t", lacks=(EVIL,)), 3),
        lambda v: v.say(EVIL),
        lambda v: v.say_some("x", [EVIL] * 30),
    ],
)
def test_whatever_the_model_writes_is_cleaned(show):
    view, out = view_of()
    show(view)
    text = out.getvalue()
    assert text.strip()
    assert not any(c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160) for c in text)
    assert "\u202e" not in text


def test_markup_is_text_and_long_output_is_cut():
    view, out = view_of()
    view.sampled("", "[bold]x[/bold] [/nonsense]")
    view.observed(Observation("\n".join(map(str, range(1000)))))
    assert "[bold]x[/bold] [/nonsense]" in out.getvalue()
    assert "left out" in out.getvalue()
    assert len(out.getvalue().splitlines()) < 60


def test_actions_look_as_one_would_type_them():
    view, out = view_of()
    view.calling(ToolCall("execute_bash", {"command": "ls -la\npwd"}))
    view.calling(ToolCall("str_replace_editor", {"command": "create", "file_text": "a\nb", "n": 3}))
    view.calling(ToolCall("submit", {}))
    view.observed(Observation("Submitted.", submitted=True))
    shown_lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert shown_lines == [
        "  $ ls -la",
        "  pwd",
        "  str_replace_editor command=create",
        "  file_text:",
        "  a",
        "  b",
        "   n=3",
        "  submit",
    ]


def test_a_file_s_name_cannot_pass_for_a_line_of_ours():
    view, out = view_of()
    view.say_some("Not copied in", ["a\nSaved in /: everything"] * 25)
    lines = out.getvalue().splitlines()
    assert len(lines) == 21
    assert all(line.startswith("Not copied in: ") for line in lines)


def test_an_answer_is_shown_once():
    """For a single question it goes to standard output instead."""
    for answers in (True, False):
        view, out = view_of(answers=answers)
        view.ended(StopReason.SUBMITTED, "42")
        assert ("42" in out.getvalue()) is answers
    view, out = view_of()
    view.ended(StopReason.MAX_TURNS, None)
    assert "episode.max_turns" in out.getvalue()


def test_the_clock_stops_when_something_happens_and_at_the_end():
    view, out = view_of(terminal=True)
    for turn in range(1, 4):
        view.thinking()
        deadline = time.monotonic() + 60
        while out.getvalue().count("thinking") < turn:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        view.sampled("", "words")
    view.thinking()
    view.close()
    view.close()
    size = len(out.getvalue())
    time.sleep(0.3)
    assert len(out.getvalue()) == size
    assert "thinking" in out.getvalue()


async def read_all(keyboard):
    lines = []
    while (line := await keyboard.line()) is not None:
        lines.append(line)
    return lines


async def test_lines_from_a_pipe_come_one_by_one():
    read, write = os.pipe()
    with os.fdopen(read) as source:
        keyboard = Keyboard(source)
        os.write(write, b"one\r\n\n  \ntwo\nthr")
        assert await keyboard.line() == "one"
        assert await keyboard.line() == "two"
        waiting = asyncio.create_task(keyboard.line())
        await asyncio.sleep(0.05)
        os.write(write, b"ee\xff")
        os.close(write)
        assert await waiting == "three\ufffd"
        assert await keyboard.line() is None


async def test_lines_from_a_file(tmp_path):
    (tmp_path / "lines").write_text("a\nb\n")
    with (tmp_path / "lines").open() as source:
        assert await read_all(Keyboard(source)) == ["a", "b"]


async def test_waiting_for_a_line_can_be_cancelled_and_ends_by_itself():
    read, write = os.pipe()
    with os.fdopen(read) as source:
        waiting = asyncio.create_task(Keyboard(source).line())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await Keyboard(source, idle_timeout_s=0.1).line() is None
        os.close(write)
