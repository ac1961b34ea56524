"""Choice questions: one letter, or several separated by commas."""

from __future__ import annotations

import re

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.text import unbox
from sandbox_rl.types import Task

__all__ = ["check_gold", "letters", "score"]

_LETTER = re.compile(r"\(?([A-Za-z])[).]?")
_SEPARATOR = re.compile(r"\s*[,;\n]\s*|\s+and\s+|\s+")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")


def letters(text: str) -> frozenset[str] | None:
    """The chosen letters in upper case, or None when the text is anything but letters."""
    if len(text) > 200:
        return None
    bare = _TEXT.sub(r"\1", unbox(text)).strip()
    parts = [part for part in _SEPARATOR.split(bare) if part]
    matches = [_LETTER.fullmatch(part) for part in parts]
    if not matches or any(match is None for match in matches):
        return None
    return frozenset(match.group(1).upper() for match in matches if match)


def check_gold(task: Task) -> None:
    """Raise `BadGold` unless the gold answer is letters."""
    _gold(task)


def score(answer: str, task: Task) -> float:
    """1.0 for the one right letter; for several, precision × recall, so that naming all earns little.

    With one right letter, naming more than one is hedging and earns 0.
    """
    gold, said = _gold(task), letters(answer)
    if said is None or (len(gold) == 1 and len(said) > 1):
        return 0.0
    hits = len(gold & said)
    return (hits / len(said)) * (hits / len(gold))


def _gold(task: Task) -> frozenset[str]:
    gold = letters(task.answer) if isinstance(task.answer, str) else None
    if gold is None:
        raise BadGold(f"the gold answer is {task.answer!r}; expected a letter, or letters such as 'A,C'")
    return gold
