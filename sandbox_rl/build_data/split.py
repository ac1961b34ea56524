"""Cutting a long text at the borders that a reader would choose."""

from __future__ import annotations

import re

__all__ = ["split_text"]

_SECTION = re.compile(r"\n(?=(?:#{1,6} |(?:chapter|section|part|book) [\divxlc]+\b|={3,}\s*$))", re.I | re.M)
_BORDERS = (
    _SECTION,
    re.compile(r"(?<=\n)(?=[ \t]*\n)"),
    re.compile(r"(?<=\n)"),
    re.compile(r"(?<=[.!?]) "),
    re.compile(r" "),
)


def split_text(text: str, limit: int) -> list[str]:
    """Pieces of at most `limit` characters, in order, cut at the coarsest border that serves.

    Sections first, then paragraphs, lines, sentences, words, and characters where there is no border.
    Neighbouring pieces are joined again as far as they fit. Only white space at cuts is lost.
    """
    pieces = [piece.strip() for piece in _cut(text, limit, 0)]
    return [piece for piece in pieces if piece]


def _cut(text: str, limit: int, level: int) -> list[str]:
    if len(text) <= limit:
        return [text]
    if level == len(_BORDERS):
        return [text[at : at + limit] for at in range(0, len(text), limit)]
    pieces: list[str] = []
    left = 0  # what the last piece can still take; 0 after a piece that was cut finer
    start = 0
    for end in [match.start() for match in _BORDERS[level].finditer(text)] + [len(text)]:
        part = text[start:end]
        start = end
        if len(part) > limit:
            pieces += _cut(part, limit, level + 1)
            left = 0
        elif pieces and len(part) <= left:
            pieces[-1] += part
            left -= len(part)
        else:
            pieces.append(part)
            left = limit - len(part)
    return pieces
