"""The files of a built task: long texts cut where a reader would, and names that do not tell the answer."""

from __future__ import annotations

import re

from sandbox_rl.tasks.names import title_to_name

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


def named_files(files: list[tuple[str, str]]) -> dict[str, str]:
    """File name → text; untitled files are numbered by position, equal names are made different."""
    named: dict[str, str] = {}
    for at, (title, text) in enumerate(files, start=1):
        plain = f"document_{at:02d}.txt"
        name = title_to_name(title, plain) if title else plain
        number = 2
        while name in named:
            name = f"{name.removesuffix('.txt').removesuffix(f'_{number - 1}')}_{number}.txt"
            number += 1
        named[name] = text
    return named


def occurs_in_name(answer: str, name: str) -> bool:
    """Whether the answer's words occur, in order and together, among the words of a file name."""
    said = re.findall(r"[^\W_]+", answer.casefold())
    words = re.findall(r"[^\W_]+", name.casefold().removesuffix(".txt"))
    return bool(said) and any(words[at : at + len(said)] == said for at in range(len(words) - len(said) + 1))
