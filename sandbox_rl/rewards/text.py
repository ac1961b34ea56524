"""Normal forms of answer text that several scorers share."""

from __future__ import annotations

import re
import string
import unicodedata

from sandbox_rl.rewards.escapes import restored

MAX_ANSWER_CHARS = 65_536
"""A longer answer scores 0 without being looked at."""

_ARTICLES = frozenset({"a", "an", "the"})
_TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»″〝〞", '"'),
        **dict.fromkeys("‘’‚‛′‹›ʼ´", "'"),
        **dict.fromkeys("‐‑‒–—―−﹣⁻", "-"),
        "⁄": "/",
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff"),
        **dict.fromkeys("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"),
    }
)
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d,])")
_MARKS = re.compile(rf"[{re.escape(string.punctuation)}]+")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[^\w\s]+(?=\d)")
_SIGNED = re.compile(r"[^\w\-]*-[^\w\-.]*(?=\.?\d)")
_POINT = re.compile(r"(?<![\w.])\.(?=\d)")


def clean(text: str) -> str:
    """The documented normal form of an answer file's text.

    A leading byte-order mark goes, LaTeX commands whose backslash was read as an escape are put back
    (`escapes.restored`), CRLF and CR become LF, NUL characters go, outer white space goes.
    """
    text = restored(text)
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").strip()


def typeset(text: str) -> str:
    """One form of what typography varies: quotes, dashes, invisible characters, width (NFKC).

    Signs that carry a value stay: decimal points, minus signs, all of which become "-", and what a raised
    or small digit says: x² is "x^2" and not "x2", 3½ is "3 1/2" and not "31/2".
    """
    raised = _VULGAR.sub(" ", _SUPERSCRIPT.sub(_power, text)).translate(_TYPOGRAPHIC)
    return unicodedata.normalize("NFKC", raised).translate(_TYPOGRAPHIC)


def _power(match: re.Match[str]) -> str:
    return "^" + unicodedata.normalize("NFKC", match.group()).replace("−", "-").removeprefix("+")


def fold(text: str) -> str:
    """Typographic variants and case folded, white space as single blanks, no closing full stop."""
    folded = " ".join(typeset(text).casefold().split())
    return folded.rstrip(".").rstrip() or folded


def squad_tokens(text: str) -> list[str]:
    """Tokens as SQuAD's evaluation counts them: lower case, no punctuation, no articles.

    Unlike there, a mark that carries a value stays: a number's sign and decimal point, and what stands
    between digits (-5 is not 5, 3.5 km not 35 km, 1/2 not 12, 10:30 not 1030) unless it groups thousands.
    Typographic variants of ASCII punctuation are punctuation.
    Source: the official SQuAD 1.1 evaluation script (Rajpurkar et al., 2016).
    """
    words = [_squad_word(word) for word in typeset(text).lower().split()]
    return [word for word in words if word and word not in _ARTICLES]


def _squad_word(word: str) -> str:
    sign = "-" if _SIGNED.match(word) else ""
    grouped = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), _POINT.sub("0.", word))
    kept = {match.start() for match in _BETWEEN_DIGITS.finditer(grouped)}
    return sign + _MARKS.sub(lambda match: match.group() if match.start() in kept else "", grouped)


_WRAPPERS = (
    (re.compile(r"\$\$(.*)\$\$", re.S), "$"),
    (re.compile(r"\$(.*)\$", re.S), "$"),
    (re.compile(r"\\\((.*)\\\)", re.S), ""),
    (re.compile(r"\\\[(.*)\\\]", re.S), ""),
)


def unbox(text: str) -> str:
    r"""The content of one `\boxed{…}` or pair of `$` when it wraps the whole text, else the text.

    Text beside the box is kept, so that it counts as part of the answer. Linear time.
    """
    for _ in range(4):  # $\boxed{$…$}$ at the deepest; a fixed number bounds the work
        text = text.strip()
        inner = _peel(text)
        if inner is None:
            return text
        text = inner
    return text


def _peel(text: str) -> str | None:
    body = text[:-1].rstrip() if text.endswith(".") else text
    if body.startswith(r"\boxed{") and body.endswith("}"):
        depth = 0
        start = len(r"\boxed")
        for at in range(start, len(body)):
            depth += {"{": 1, "}": -1}.get(body[at], 0)
            if depth == 0:
                return body[start + 1 : -1] if at == len(body) - 1 else None
        return None
    for pattern, forbidden in _WRAPPERS:
        if match := pattern.fullmatch(body):
            inner = match.group(1)
            return None if forbidden and forbidden in inner else inner
    return None
