r"""Mathematical equality of one answer with the gold answer.

Both texts are read as a whole (`latex.read`) and their trees compared: shapes by the rules below, expressions
by value (`values.same_value`), units by dimension and size. What is not understood is never dropped: such an
answer earns 0, and such a gold answer is compared as text (`text_form`). docs/rewards.md has the conventions.
"""

from __future__ import annotations

import re
from functools import lru_cache

from sandbox_rl.rewards.base import BadGold, ComparedAsText
from sandbox_rl.rewards.formulas.answers import read
from sandbox_rl.rewards.formulas.compare import same
from sandbox_rl.rewards.formulas.nodes import Node, is_plain
from sandbox_rl.rewards.formulas.tokens import Unread, bare, tokenize
from sandbox_rl.rewards.text import fold
from sandbox_rl.types import Task

_TIMES = re.compile(r"\\cdot|\\times|×")
_LAYOUT = re.compile(r"\\left|\\right|\\[,;! ()\[\]]|[$ \n]")
_PLAIN_KINDS = frozenset(
    {"text", "time", "ratio", "based", "set", "tuple", "list", "sym", "const", "numbers"}
)


def check_gold(task: Task) -> None:
    """Look at the gold answer alone.

    Raises:
        BadGold: it is not text, or empty.
        ComparedAsText: it is not understood as mathematics.
    """
    _sound(task.answer)
    try:
        read(task.answer)
    except (Unread, RecursionError) as error:
        raise ComparedAsText(f"{task.answer[:80]!r}: {error}") from None


def score(answer: str, task: Task) -> float:
    """1.0 if the answer states the gold value and nothing else, else 0.0."""
    return float(equal(answer, task.answer, question=task.prompt))


def equal(answer: str, gold: str, *, question: str = "") -> bool:
    """Whether `answer` states exactly what `gold` states.

    Args:
        question: a formula that stands in it is not paid, unless it is written as the gold is.

    Raises:
        BadGold: the gold answer is not text, or empty.
    """
    _sound(gold)
    if text_form(answer) == text_form(gold):
        return True
    golds = _golds(gold)
    try:
        said = read(answer)
    except (Unread, RecursionError):
        return False
    if not any(same(said, each) for each in golds):
        return False
    return not question or not _copied(answer, said, question)


def _sound(gold: object) -> None:
    if not isinstance(gold, str) or not bare(gold):
        raise BadGold(f"the gold answer is {gold!r}; expected text")


@lru_cache(maxsize=256)
def _golds(text: str) -> tuple[Node, ...]:
    """The readings of a gold answer: "1,234" is a number, or a list that was written without blanks."""
    found: list[Node] = []
    for thousands in (True, False):
        try:
            node = read(text, thousands=thousands)
        except (Unread, RecursionError):
            continue
        if node not in found:
            found.append(node)
    return tuple(found)


@lru_cache(maxsize=1024)
def text_form(text: str) -> str:
    r"""What a gold answer that is not understood is compared by.

    Its tokens: without wrappers (`$`, `\boxed`, bold), layout (`\left`, `\,`) and white space, one spelling
    of each sign (`\dfrac`, `\le`, `−`), words of more than four letters in lower case. Where even tokens
    cannot be told, the text with its white space, width and case folded.
    """
    try:
        tokens = tokenize(text)
    except Unread:
        return fold(bare(text))
    return " ".join(token.text.casefold() if len(token.text) > 4 else token.text for token in tokens)


def _copied(answer: str, said: Node, question: str) -> bool:
    """Whether the answer is a formula of the question rather than its result."""
    if said.kind == "quantity":
        said = said.args[0]
    if is_plain(said) or said.kind in _PLAIN_KINDS:
        return False
    formula, place = _squeezed(bare(answer)), -1
    asked = _squeezed(question)
    while (place := asked.find(formula, place + 1)) >= 0:
        before, after = asked[:place][-1:], asked[place + len(formula) :][:1]
        if not _joins(before) and not _joins(after):
            return True
    return False


def _joins(char: str) -> bool:
    """Whether a sign beside a formula makes it a part of a larger one."""
    return char != "" and (char.isdigit() or char in "+-*/^=<>\\_({")


def _squeezed(text: str) -> str:
    """A formula without layout, with one spelling of its signs."""
    return _LAYOUT.sub("", _TIMES.sub("*", text.replace("**", "^").replace("−", "-")))
