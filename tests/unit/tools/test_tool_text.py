"""Output is cleaned and cut exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_rl.tools.lines import (
    CLIPPED,
    count_lines,
    insert_lines,
    line_of,
    number_lines,
    snippet,
)
from sandbox_rl.tools.text import MAX_LINES, clean, clip, quote, stream_text
from sandbox_rl.types import Stream
from tests.growth import assert_linear


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m \x1b[1;38;5;9mx\x1b[K", "red x"),
        ("\x1b]0;a title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "text link"),
        ("\x1bPq bytes\x1b\\after \x1b(Bx\x1b7y\x1bc", "after xy"),
        ("a\x00b\x07c\x08d\x7fe\x9bf\x85g", "abcdefg"),
        ("10%\r20%\r\n100%\n", "10%\n20%\n100%\n"),
        ("tab\there \u2028 é 😀 \ufeff", "tab\there \u2028 é 😀 \ufeff"),
        ("half \ud83d\ude00 \udfff", "half \ufffd\ufffd \ufffd"),
        ("cut \x1b[", "cut "),
        ("\x1b]0;never closed\nnext", "\nnext"),
    ],
)
def test_clean(raw: str, shown: str) -> None:
    assert clean(raw) == shown


@given(st.text(st.characters(), max_size=200))
def test_clean_text_can_be_encoded_and_is_clean_already(text: str) -> None:
    once = clean(text)
    assert once.encode().decode() == once
    assert not [c for c in once if ord(c) < 32 and c not in "\t\n"]
    assert clean(once) == once


@given(st.text("ab\n", max_size=3000), st.integers(300, 900))
def test_clip_keeps_head_and_tail_within_its_bounds(text: str, max_chars: int) -> None:
    got = clip(text, max_chars)
    assert len(got) <= max_chars or got == text
    assert got.count("\n") <= MAX_LINES + 1
    if got == text:
        assert len(text) <= max_chars
    else:
        head, _, rest = got.partition("\n[... ")
        left_out, tail = int(rest.split(" ")[0]), rest.partition("]\n")[2]
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head) + left_out + len(tail) == len(text)


def test_clip_keeps_forty_lines_at_both_ends() -> None:
    text = "\n".join(str(i) for i in range(1000))
    lines = clip(text, 10_000).split("\n")
    assert lines[:40] == [str(i) for i in range(40)]
    assert lines[-40:] == [str(i) for i in range(960, 1000)]
    assert "919" in lines[40] or "921" in lines[40]
    assert len(lines) == 81


def test_a_short_end_leaves_its_room_to_the_other() -> None:
    text = "\n".join(["x" * 5000] * 40 + ["y"] * 50)
    got = clip(text, 10_000)
    assert 9_900 <= len(got) <= 10_000
    assert got.endswith("\n" + "\n".join(["y"] * 40))


def test_streams_are_decoded_with_bad_bytes_replaced() -> None:
    assert stream_text(Stream(b"ok \xff\xfe \xe2\x82", total_bytes=8), 1000) == "ok \ufffd\ufffd \ufffd"
    assert stream_text(Stream(b"out\n", total_bytes=4), 1000) == "out"
    assert stream_text(Stream(), 1000) == ""


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_character_split_by_the_sandboxs_cut_is_dropped_not_mangled(cut: int) -> None:
    data = "€😀x".encode()
    stream = Stream(head=data[:cut], tail=data[cut + 1 :], total_bytes=len(data) + 100)
    got = stream_text(stream, 1000)
    assert "\ufffd" not in got
    assert "108 bytes" in got


def test_a_truncated_flood_names_its_size() -> None:
    stream = Stream(head=b"h" * 500_000, tail=b"t" * 500_000, total_bytes=4_000_000)
    got = stream_text(stream, 10_000)
    assert len(got) <= 10_000
    assert "4000000 bytes" in got
    assert got.startswith("hhh")
    assert got.endswith("ttt")


def test_a_megabyte_of_escapes_is_cleaned_in_time_by_its_length() -> None:
    def clean(length: int) -> None:
        for unit in (b"\x1b", b"\x1b[", b"\x1b]0;", b"\x1b[0;", b"\x1bP", b"\r", b"\x00"):
            stream_text(Stream(unit * (length // len(unit)), total_bytes=length), 10_000)

    assert_linear(clean, 1_000_000)


def test_quote_is_one_short_line() -> None:
    assert quote("a\nb\x1b[31m") == "'a\\nb'"
    assert quote("x" * 500, 10) == "'xxxxxxxxxx…'"


def test_lines_end_at_line_feeds_only() -> None:
    assert [count_lines(t) for t in ("", "a", "a\n", "a\nb", "\n", "a\u2028b\x0cc\rd")] == [0, 1, 1, 2, 1, 1]
    assert [line_of("a\nb\n", i) for i in range(4)] == [1, 1, 2, 2]


def test_numbered_lines() -> None:
    text = "\ufeffone\r\n\ttwo\nthree"
    assert number_lines(text, 1, 3, 1000) == "     1\tone\n     2\t\ttwo\n     3\tthree"
    assert number_lines(text, 2, 2, 1000) == "     2\t\ttwo"


def test_lines_that_do_not_fit_are_left_out_with_a_hint() -> None:
    text = "".join(f"line {i}\n" for i in range(1, 1000))
    got = number_lines(text, 1, 999, 1000)
    *shown, note = got.split("\n")
    assert len(got) <= 1000
    assert note == f"{CLIPPED} Line {len(shown) + 1} is next: use view_range to go on."
    long = number_lines("x" * 5000, 1, 1, 1000)
    assert len(long) <= 1000
    assert "longer than what is shown" in long


def test_snippet_shows_four_lines_around() -> None:
    text = "".join(f"{i}\n" for i in range(1, 30))
    assert snippet(text, 10, 2, 1000).split("\n")[0] == "     6\t6"
    assert snippet(text, 10, 2, 1000).split("\n")[-1] == "    15\t15"


@pytest.mark.parametrize(
    ("text", "after", "new", "result"),
    [
        ("", 0, "x", "x"),
        ("a\nb\n", 0, "x", "x\na\nb\n"),
        ("a\nb\n", 1, "x\n", "a\nx\nb\n"),
        ("a\nb\n", 2, "x", "a\nb\nx"),
        ("a\nb", 2, "x", "a\nb\nx"),
        ("a\r\nb", 1, "x", "a\r\nx\r\nb"),
        ("a\r\nb", 2, "x\r\n", "a\r\nb\r\nx\r\n"),
    ],
)
def test_insert_lines(text: str, after: int, new: str, result: str) -> None:
    assert insert_lines(text, after, new) == result
