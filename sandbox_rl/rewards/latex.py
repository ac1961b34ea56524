r"""Reading an answer as exactly one mathematical answer.

`read` turns text such as `\boxed{x = 1{,}000 \text{ km}}` into its parts: bracket, elements, and for
each element the expression apart from the words beside it. It is linear in the text and evaluates
nothing; what it refuses (prose, several candidates, text built to stall a parser) is no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandbox_rl.rewards.text import unbox

__all__ = ["MAX_CHARS", "Element", "Reading", "read"]

MAX_CHARS = 1000
MAX_DEPTH = 24
MAX_ELEMENTS = 64

_FUNCTIONS = frozenset(
    (
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
        *("log", "ln", "exp", "sqrt", "gcd", "lcm", "mod", "pi", "infty", "inf"),
        *("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "sigma", "phi", "omega"),
    )
)
_DROPPED = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|displaystyle|limits|quad|qquad|big|Big)(?![A-Za-z])"
)
_SPACES = re.compile(r"(?<!\\)\\[,;:!> ]|~")
_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")
_WORD = re.compile(
    r"(?<!\\)(?<![A-Za-z])(?<!begin\{)(?<!end\{)[A-Za-z°%$€£'’-]*[A-Za-z]{2,}[A-Za-z'’]*(?![A-Za-z(])"
)
_LHS = re.compile(r"([A-Za-z]|\\[a-z]+)(?:_\{?\w{1,8}\}?)?(?:\([a-z]\))?")
_TWO_NUMBERS = re.compile(r"[\d)}]\s+\d")
_BOMBS = (
    re.compile(r"\d{200}"),
    re.compile(r"\d{4,}\s*!|[)}!]\s*!"),
    re.compile(r"\^\s*\{?\s*[-+]?\d{5,}"),
    re.compile(r"\^[^-+*/=,]*\^"),
    re.compile(r"\\(?:binom|sum|prod|int|lim|bigcup|bigcap|d?binom|iint|oint)(?![A-Za-z])"),
    re.compile(r"-{4,}|\+{4,}|!{2,}"),
    re.compile(r"[eE]\s*[-+]?\d{4,}"),
)


@dataclass(frozen=True, slots=True)
class Element:
    """One member of an answer: `expression` in LaTeX without blanks at its ends, `words` beside it."""

    expression: str
    words: str
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer. `bracket` is "" (a single value or a bare list), "()", "[)", "{}" and so on."""

    bracket: str
    elements: tuple[Element, ...]
    heavy: bool


def read(text: str) -> Reading | None:
    r"""The one answer that the text states, or None.

    `heavy` is set when evaluating it could take very long: towers of powers, factorials of large
    numbers, sums, binomials. Such an answer can only be compared as text.
    """
    body = unbox(text)
    if len(body) > MAX_CHARS or r"\boxed" in body or not _balanced(body):
        return None
    if body.startswith("$") and "$" in body[1:]:
        return None  # several formulas
    body = _plain(body)
    if not body:
        return None
    bracket, inner = _bracket(body)
    parts = _split(inner) if bracket or "," in inner or " " in inner else [inner]
    if len(parts) > MAX_ELEMENTS:
        return None
    elements = [_element(part) for part in parts]
    kept = tuple(element for element in elements if element is not None)
    if len(kept) != len(elements):
        return None
    heavy = any(pattern.search(element.expression) for element in kept for pattern in _BOMBS)
    return Reading(bracket, kept, heavy)


def _plain(body: str) -> str:
    for old, new in (
        ("{,}", ""),
        (r"\dfrac", r"\frac"),
        (r"\tfrac", r"\frac"),
        ("−", "-"),
        ("×", r"\times "),
        ("·", r"\cdot "),
        ("π", r"\pi "),
        ("√", r"\sqrt "),
        ("∞", r"\infty "),
        ("**", "^"),
        (r"^\circ", " ° "),
        (r"^{\circ}", " ° "),
        (r"\degree", " ° "),
        (r"\%", " % "),
        ("%", " % "),
        (r"\$", " $ "),
    ):
        body = body.replace(old, new)
    body = re.sub(r"(?<=\d)(?:\\[,!]|\\ )(?=\d{3}(?!\d))", "", body)
    body = _SPACES.sub(" ", _DROPPED.sub("", body))
    body = _TEXT.sub(lambda match: f" {match.group(1).strip()} ", body)
    body = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), body)
    body = re.sub(r"(?<![\\A-Za-z])(sqrt|pi)(?![A-Za-z])", r"\\\1 ", body)
    body = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", body)
    return " ".join(body.split()).rstrip(".").strip()


def _balanced(text: str) -> bool:
    depth = deepest = braces = 0
    escaped = False
    for char in text:
        if not escaped and char in "{}":
            braces += 1 if char == "{" else -1
            if braces < 0:
                return False
        if char in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")}]":
            depth -= 1
        escaped = char == "\\" and not escaped
    return braces == 0 and deepest <= MAX_DEPTH


def _bracket(body: str) -> tuple[str, str]:
    """The pair of brackets around a whole list, and what it holds."""
    for opening, closing in ((r"\{", r"\}"), ("{", "}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]")):
        if body.startswith(opening) and body.endswith(closing):
            inner = body[len(opening) : -len(closing)].strip()
            if len(_split(inner)) > 1 or opening == r"\{":
                name = (opening + closing).replace("\\", "")
                return (name, inner) if _level(inner) else ("", body)
    return "", body


def _level(inner: str) -> bool:
    """Whether the outer pair belongs together: never closed early."""
    depth = 0
    for char in inner:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if depth < 0:
            return False
    return depth == 0


def _split(text: str) -> list[str]:
    """Split at commas, semicolons, "and", "or" outside brackets."""
    text = re.sub(r"\s(?:and|or)\s", " , ", text)
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if char in ",;" and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _element(part: str) -> Element | None:
    variable = ""
    left, equals, right = part.partition("=")
    if equals and _LHS.fullmatch(left.strip()):
        variable, part = left.strip(), right.strip()
    words: list[str] = []

    def take(match: re.Match[str]) -> str:
        if match.group() in _FUNCTIONS:
            return match.group()
        words.append(match.group())
        return " "

    expression = _WORD.sub(take, part)
    for sign in ("°", "%", "$", "€", "£"):
        if sign in expression:
            words.append(sign)
            expression = expression.replace(sign, " ")
    expression = " ".join(expression.split())
    if words and (match := re.search(r"(?<=\d)\s+([A-Za-z])$", expression)):  # "5 km h" and the like
        words.append(match.group(1))
        expression = expression[: match.start()]
    elif match := re.fullmatch(
        r"([-+]?[\d./]+(?:[eE][-+]?\d{1,3}| ?\\times ?10\^\{?-?\d{1,3}\}?)?)\s+((?:[A-Za-z]\s*[/^\d]*\s*)+)",
        expression,
    ):  # "5 m", "9 m/s^2"
        expression, spelled = match.group(1), match.group(2).strip()
        words.append(spelled)
    if r"\begin" not in expression and _TWO_NUMBERS.search(expression):
        mixed = re.fullmatch(r"(-?)(\d+) (\d+)/(\d+)", expression)
        if mixed is None:
            return None
        expression = f"{mixed[1]}({mixed[2]}+{mixed[3]}/{mixed[4]})"
    expression = expression.strip(" *")
    if not expression and not words:
        return None
    return Element(expression, " ".join(words), variable)
