r"""Numbered lines of a text. Lines end at "\n" only, so that numbers agree with `sed` and `grep -n`."""

from __future__ import annotations

from sandbox_rl.tools.text import clean

CLIPPED = "<response clipped>"
_STRETCH = 4096
AROUND = 4
"""Lines shown before and after an edit."""


def count_lines(text: str) -> int:
    """Number of lines; a last line without newline counts."""
    return text.count("\n") + (not text.endswith("\n") and text != "")


def line_of(text: str, offset: int) -> int:
    """The 1-based number of the line that holds `offset`."""
    return text.count("\n", 0, offset) + 1


def occurrences(text: str, sought: str, most: int) -> list[int]:
    """Offsets at which `sought` begins, the first `most`; they may overlap: "aa" is twice in "aaa"."""
    found: list[int] = []
    at = text.find(sought)
    while at >= 0 and len(found) < most:
        found.append(at)
        at = text.find(sought, at + 1)
    return found


def number_lines(text: str, first: int, last: int, max_chars: int) -> str:
    """Lines `first` to `last` as `cat -n` shows them, at most `max_chars` characters.

    What does not fit is left out from the end, with a note which line comes next.
    """
    shown: list[str] = []
    left = max_chars - 200  # for the note
    start = _start_of(text, first)
    for number in range(first, last + 1):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        raw = text[start : min(end, start + max_chars)].removesuffix("\r").removeprefix("\ufeff")
        line = f"{number:6d}\t{clean(raw).replace(chr(10), ' ')}"
        if len(line) > left and shown:
            return "\n".join([*shown, f"{CLIPPED} Line {number} is next: use view_range to go on."])
        if len(line) > left:
            more = f"Line {number} is longer than what is shown: use execute_bash to see its rest."
            return f"{line[:left]}\n{CLIPPED} {more}"
        shown.append(line)
        left -= len(line) + 1
        start = end + 1
    return "\n".join(shown)


def snippet(text: str, first: int, count: int, max_chars: int) -> str:
    """The lines around the `count` lines from `first` on."""
    total = count_lines(text)
    return number_lines(text, max(1, first - AROUND), min(total, first + count - 1 + AROUND), max_chars)


def insert_lines(text: str, after: int, new: str) -> str:
    """`new` as lines of its own after line `after`, in the file's own line ends.

    A newline is added only where `new` would otherwise share a line with text that is there.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    at = _start_of(text, after + 1)
    before, behind = text[:at], text[at:]
    if before and not before.endswith("\n"):
        before += newline
    if behind and not new.endswith("\n"):
        new += newline
    return before + new + behind


def _start_of(text: str, line: int) -> int:
    """Offset at which 1-based `line` begins; the text's length if there is no such line."""
    at, left = 0, line - 1
    # By stretches first: a file may be a million line ends.
    while at < len(text) and (there := text.count("\n", at, at + _STRETCH)) < left:
        at, left = at + _STRETCH, left - there
    for _ in range(left):
        at = text.find("\n", at) + 1
        if at == 0:
            return len(text)
    return at
