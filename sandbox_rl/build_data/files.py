"""Names of built files, and the check that they do not tell the answer."""

from __future__ import annotations

import re

from sandbox_rl.tasks.names import title_to_name

__all__ = ["named_files", "occurs_in_name"]


def named_files(files: list[tuple[str, str]]) -> dict[str, str]:
    """File name → text; untitled files are numbered by position, equal names are told apart."""
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
