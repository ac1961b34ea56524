"""Output of commands and files as text fit for a model: clean, and cut to a bounded size."""

from __future__ import annotations

import codecs
import re

from sandbox_rl.types import Stream

MAX_OBSERVATION_CHARS = 10_000
"""No observation is longer than this, whatever a tool, its arguments or a malformed call make of it. The
toolbox sees to it; tools that know better where to cut keep to it themselves."""

MAX_LINES = 80
"""Kept lines of one output stream: the first and the last half of them."""

LOOKED_AT = 16 << 10
"""Bytes at each end of an output stream that are cleaned; many times what is shown, and cleaning a whole
stream of escape sequences would stop the event loop for a tenth of a second."""

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor movement
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC and other strings: titles, links
    r"|\x1b[ -/]*[0-~]?"  # all shorter ones
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    r"""`text` without terminal sequences, control characters (but \t and \n) and lone surrogates."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))


def clip(text: str, max_chars: int, *, max_lines: int = MAX_LINES, marker: str = "") -> str:
    """Head and tail of `text`, at most `max_lines` lines and `max_chars` characters in all.

    Args:
        marker: stands where the cut is; by default a line that counts what was left out.
    """
    lines = text.split("\n")
    if len(lines) <= max_lines and len(text) <= max_chars:
        return text
    if len(lines) > max_lines:
        half = max_lines // 2
        head, tail = "\n".join(lines[:half]), "\n".join(lines[-half:])
    else:
        head = tail = text
    left = max_chars - max(len(marker), 80)
    if len(head) + len(tail) > left:
        for_head = max(left // 2, left - len(tail))
        head = head[:for_head]
        tail = tail[len(tail) - (left - len(head)) :] if len(tail) > left - len(head) else tail
    left_out = len(text) - len(head) - len(tail)
    skipped = text[len(head) : len(text) - len(tail)].count("\n")
    return f"{head}\n{marker or f'[... {left_out} characters, {skipped} line ends left out ...]'}\n{tail}"


def stream_text(stream: Stream, max_chars: int) -> str:
    """One output stream as clean text of at most `max_chars` characters; only its ends are looked at.

    Bytes that are no UTF-8 become U+FFFD; a character that the sandbox's own cut has split is dropped.
    """
    first, last = stream.head, stream.tail
    if not stream.truncated:
        data = first + last
        if len(data) <= 2 * LOOKED_AT:
            return clip(clean(data.decode("utf-8", "replace")).removesuffix("\n"), max_chars)
        first = last = data
    head = clean(codecs.getincrementaldecoder("utf-8")("replace").decode(first[:LOOKED_AT]))
    tail = clean(_from_character_start(last[-LOOKED_AT:]).decode("utf-8", "replace")).removesuffix("\n")
    marker = f"[... cut: the output was {stream.total_bytes} bytes, its middle was left out ...]"
    both = f"{head}\n{marker}\n{tail}"
    if len(both) <= max_chars and both.count("\n") < MAX_LINES:
        return both
    return clip(f"{head}\n{tail}", max_chars, marker=marker)


def _from_character_start(data: bytes) -> bytes:
    """`data` without the continuation bytes of a character that began before it."""
    start = 0
    while start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:]


def quote(text: str, max_chars: int = 80) -> str:
    """`text` in quotes on one line, shortened, for messages."""
    shown = clean(text[: max_chars + 1]).replace("\n", "\\n")
    return f"'{shown[:max_chars]}…'" if len(text) > max_chars else f"'{shown}'"
