"""Choice questions: one letter, or several separated by commas."""

from __future__ import annotations

import re

from sandbox_rl.rewards.base import BadGold
from sandbox_rl.rewards.text import fold, typeset, unbox
from sandbox_rl.types import Task

_LETTER = re.compile(r"\(?([A-Za-z])[).:]{0,2}")
_SEPARATOR = re.compile(r"\s*[,;\n]\s*|\s+and\s+|\s+")
_RUN = re.compile(r"[A-J]{2,10}")
"""Several letters as data sets of multiple answers write them: "ACD", each once and in order."""
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm)\s*\{([^{}]*)\}")
_MARKS = re.compile(r"[*_`]+(?=\S)|(?<=\S)[*_`]+")
_NAMED = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct|right|best)\s+)*"
    r"(?:option|choice|answer)(?:\s+is)?\s*:?\s+(?:(?:option|choice)\s+)?",
    re.I,
)
_WITH_TEXT = re.compile(r"\(?([A-Za-z])(?:[).:]+|\s+-)\s+(\S.*)")
_HEDGE = re.compile(
    r"\b(?:or|and|not|but|maybe|perhaps|either|both|neither|possibly|unless|if)\b|\b[B-HJ-Z]\b|\?", re.I
)


def letters(text: str) -> frozenset[str] | None:
    """The chosen letters in upper case, or None when the text is anything but letters."""
    bare = _bare(text)
    if _RUN.fullmatch(bare) and list(bare) == sorted({*bare}):
        return frozenset(bare)
    parts = [part for part in _SEPARATOR.split(bare) if part] if bare else []
    matches = [_LETTER.fullmatch(part) for part in parts]
    if not matches or any(match is None for match in matches):
        return None
    return frozenset(match.group(1).upper() for match in matches if match)


def check_gold(task: Task) -> frozenset[str]:
    """The letters of the gold answer. Raises `BadGold` where it is anything else."""
    gold = letters(task.answer) if isinstance(task.answer, str) else None
    if gold is None:
        raise BadGold(f"the gold answer is {task.answer!r}; expected a letter, or letters such as 'A,C'")
    return gold


def score(answer: str, task: Task) -> float:
    """1.0 for the one right letter; for several, precision × recall, so that naming all earns little.

    With one right letter, naming more than one is hedging and earns 0. A letter may stand in bold, in
    brackets, behind "Option" or "Answer:", and before the text of its option.
    """
    gold, said = check_gold(task), letters(answer) or _with_text(answer, task.prompt)
    if said is None or (len(gold) == 1 and len(said) > 1):
        return 0.0
    hits = len(gold & said)
    return (hits / len(said)) * (hits / len(gold))


def _bare(text: str) -> str:
    """Without boxes, marks of Markdown and LaTeX, and a leading "Option" or "Answer:"; "" where too long."""
    if len(text) > 400:
        return ""
    plain = typeset(text).replace("\u2028", "\n")
    plain = _TEXT.sub(r"\1", unbox(_MARKS.sub("", unbox(plain)))).strip()
    return _NAMED.sub("", plain, count=1) if _NAMED.match(plain) else plain


def _with_text(answer: str, question: str) -> frozenset[str] | None:
    """The letter of "B. Paris": what follows it is the text of that option, or names no other option."""
    match = _WITH_TEXT.fullmatch(_bare(answer))
    if match is None:
        return None
    letter, text = match.group(1).upper(), fold(match.group(2))
    options = re.findall(rf"(?:^|[\s(]){letter}[).:]+\s+(\S.*)", question, re.M)
    if options:
        said = any(
            fold(option) == text or fold(re.split(r"\s\(?[A-Z][).:]", option)[0]) == text
            for option in options
        )
    else:
        said = _HEDGE.search(match.group(2)) is None
    return frozenset({letter}) if said else None
