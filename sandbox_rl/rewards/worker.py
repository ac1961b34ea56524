"""What runs in a scoring process. Imports no torch and, until a scorer asks for it, nothing heavy."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from sandbox_rl.rewards.base import BadGold, LoadedScorer, load_scorer
from sandbox_rl.types import Task

__all__ = ["Outcome", "check", "prepare", "run", "warm"]

READ_BOTH_WAYS = frozenset({"math", "exact", "numeric", "choice"})
"""Scorers that are given an answer's other reading as well."""

_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "pty.", "urllib.", "webbrowser.")
_ALLOWED = frozenset({"os.listdir", "os.scandir", "os.walk", "os.putenv", "os.unsetenv"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_guard = {"on": False}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one scoring ended.

    `kind`: "value"; "bad_gold"; "error" (the scorer raised, or was killed for its time); "broken" (its
    process died); "down" (the pool was not there).
    """

    kind: Literal["value", "bad_gold", "error", "broken", "down"]
    value: float = 0.0
    parts: Mapping[str, float] | None = None
    detail: str = ""


def prepare(memory_mb: int, scorers: tuple[str, ...] = ()) -> None:
    """Initialise a worker: bound its memory, leave the caller's folder, guard the built-in scorers.

    Args:
        scorers: those that will be asked for; what they import is imported now, because later it would
            count against the time of an answer.
    """
    os.chdir("/")
    sys.path[:] = [entry for entry in sys.path if entry]  # never import from a working directory
    if "reasoning_gym" in scorers:
        import reasoning_gym  # noqa: F401
    used = _address_space()
    limit = used + (memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_audit)


def run(scorers: tuple[tuple[str, float], ...], answer: str, task: Task, other: str | None = None) -> Outcome:
    """Score `answer` by the weighted mean of `scorers`; exceptions become outcomes.

    Args:
        other: the answer read otherwise (`escapes.other_reading`): what compares it with a gold answer takes
            the better of the two.
    """
    total = sum(weight for _, weight in scorers)
    parts: dict[str, float] = {}
    value = 0.0
    for name, weight in scorers:
        outcome = _one(_load(name), answer, task)
        if other and name in READ_BOTH_WAYS and outcome.kind == "value" and outcome.value < 1:
            outcome = max(outcome, _one(_load(name), other, task), key=_worth)
        if outcome.kind != "value":
            return outcome
        value += weight * outcome.value / total
        if len(scorers) > 1:
            parts[name] = outcome.value
        parts.update(outcome.parts or {})
    return Outcome("value", value, parts)


def check(scorers: tuple[tuple[str, float], ...], task: Task) -> Outcome:
    """Look at the gold answer alone."""
    for name, _ in scorers:
        scorer = _load(name)
        if scorer.check_gold is None:
            continue
        try:
            with _guarded(scorer.built_in):
                scorer.check_gold(task)
        except Exception as error:
            return Outcome("bad_gold", detail=_why(error))
    return Outcome("value")


def _one(scorer: LoadedScorer, answer: str, task: Task) -> Outcome:
    try:
        with _guarded(scorer.built_in):
            result = scorer.score(answer, task)
    except BadGold as error:
        return Outcome("bad_gold", detail=f"{scorer.name}: {error}")
    except Exception as error:
        return Outcome("error", detail=f"{scorer.name}: {_why(error)}")
    parts = {key: float(part) for key, part in result.items()} if isinstance(result, Mapping) else {}
    if isinstance(result, Mapping) and "value" not in parts:
        return Outcome("error", detail=f"{scorer.name}: the returned mapping has no 'value'")
    value = parts.pop("value") if parts or isinstance(result, Mapping) else _number(result)
    if not math.isfinite(value):
        return Outcome("error", detail=f"{scorer.name}: returned {value}, not a finite number")
    return Outcome("value", value, parts)


def _worth(outcome: Outcome) -> float:
    return outcome.value if outcome.kind == "value" else -math.inf


def _number(result: Any) -> float:
    try:
        return float(result)
    except (TypeError, ValueError):
        return math.nan


@lru_cache(maxsize=256)
def _load(name: str) -> LoadedScorer:
    return load_scorer(name)


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


@contextmanager
def _guarded(on: bool) -> Iterator[None]:
    """While a built-in scorer reads an answer, nothing outside the process can be touched."""
    _guard["on"] = on
    try:
        yield
    finally:
        _guard["on"] = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    # Second line of defence: libraries underneath evaluate expressions. The first is that our
    # scorers refuse text that could be code. Reading is allowed: modules are imported on first use.
    if not _guard["on"]:
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITING != 0
    if writes or (event.startswith(_FORBIDDEN) and event not in _ALLOWED):
        raise PermissionError(f"scorers may not do {event}")


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def warm() -> None:
    """Import what most scorings need, so that the first answer does not pay for it."""
    import math_verify  # noqa: F401
