"""What the documentation tells people to type, and how it is held against the program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from sandbox_rl.cli import whole_app

__all__ = ["PAGES", "ROOT", "Command", "blocks", "commands", "parsed"]

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SPECIFICATION.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
)
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
STARTS = re.compile(
    r"(?:[A-Z_]+=\S* )*(?:\S*/)?(?:sandbox-rl|python3?|pytest|pip|uv|accelerate|vllm|mkdocs|pre-commit"
    r"|tensorboard|ssh|docker|sbatch|torchrun|source) |(?:\S+ )?scripts/\w+(?: |$)"
)
"""How a line begins that is a command and not what one prints."""
SHELLS = ("", "sh", "bash", "shell", "console")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page.

    Args:
        page: name of the file.
        words: as a shell would split it, without variables before it and with placeholders filled in.
        variables: those before it.
        inline: it stands in a sentence, not in a block of its own.
    """

    page: str
    words: tuple[str, ...]
    variables: tuple[str, ...] = ()
    inline: bool = False

    def __str__(self) -> str:
        return " ".join(self.words)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    for _, language, text in FENCED.findall(page.read_text(encoding="utf-8")):
        yield language, text


@cache
def commands() -> tuple[Command, ...]:
    """All of them, in the order of the pages."""
    return tuple(_found())


def _found() -> Iterator[Command]:
    for page in PAGES:
        for language, text in blocks(page):
            if language in SHELLS:
                for line in text.replace("\\\n", " ").splitlines():
                    yield from _commands_of(page.name, line.strip().removeprefix("$ "), inline=False)
        for span in INLINE.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
            yield from _commands_of(page.name, span, inline=True)


def _commands_of(page: str, line: str, *, inline: bool) -> Iterator[Command]:
    if not STARTS.match(f"{line} "):
        return
    words = shlex.split(line, comments=True)
    if inline and len(words) == 1 and not line.startswith("scripts/"):
        return  # the name of a program
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        one, words = words[:end], words[end + 1 :]
        count = next(i for i, word in enumerate(one) if not re.fullmatch(r"[A-Z_]+=.*", word))
        yield Command(page, tuple(_filled(one[count:])), tuple(one[:count]), inline)


def _filled(words: list[str]) -> Iterator[str]:
    """With what stands for another: `[EPISODE]` may be left out, `a|b` is one of two, `…` is anything."""
    before = ""
    for word in words:
        if word != "…":
            word = word[1:-1] if re.fullmatch(r"\[[^\]=]+\]", word) else word
            yield word.split("|")[0] if re.fullmatch(r"\w+(\|\w+)+", word) else word
        elif before.startswith("--"):
            yield "MODEL"
        before = word


@cache
def _app() -> Any:
    return typer.main.get_command(whole_app())


def parsed(words: tuple[str, ...]) -> dict[str, Any]:
    """The arguments and options of `sandbox-rl …`, read as the program reads them; nothing is run.

    Raises:
        Exception: the program's own, about a command, option or value that does not exist.
    """
    command, name, rest = _app(), "sandbox-rl", list(words[1:])
    context = None
    while True:
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "resolve_command"):
            return dict(context.params)
        left = [*getattr(context, "_protected_args", ()), *context.args]
        if not left:
            raise typer.BadParameter(f"{name}: Missing parameter: the command")
        name, command, rest = command.resolve_command(context, left)
