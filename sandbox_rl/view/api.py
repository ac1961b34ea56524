"""Every question that the page asks, by its name; the server and the export answer by the same functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import orjson

from sandbox_rl.errors import DataError
from sandbox_rl.view import comparison
from sandbox_rl.view.episode import episode, whole_text
from sandbox_rl.view.listing import choices, list_episodes
from sandbox_rl.view.opened import OpenRun
from sandbox_rl.view.overview import overview, runs_of
from sandbox_rl.view.suspicion import suspicions
from sandbox_rl.view.timeline import timeline
from sandbox_rl.view.tokens import tokens

Query = Mapping[str, str]

QUESTIONS: Mapping[str, Callable[[OpenRun, Query], Any]] = {
    "overview": overview,
    "episodes": list_episodes,
    "choices": lambda run, query: choices(run),
    "episode": episode,
    "text": whole_text,
    "tokens": tokens,
    "group": comparison.group,
    "task": comparison.task,
    "timeline": timeline,
    "suspicions": suspicions,
    "recipe": lambda run, query: {"text": _recipe(run)},
}
"""Name → what answers it about one run."""


def answer(runs: Sequence[OpenRun], name: str, query: Query) -> Any:
    """What a question's answer is, as values that `to_json` takes.

    Args:
        name: of `QUESTIONS`, or "runs", or "compare" (`run` and `other`).
        query: `run` is the number of a run, 0 by default; the rest is the question's own.

    Raises:
        DataError: no such question, run, episode …
    """
    if name == "runs":
        return runs_of(runs)
    if name == "compare":
        return comparison.compare(_run(runs, query, "run"), _run(runs, query, "other"))
    if name not in QUESTIONS:
        raise DataError(f"no question {name!r}, expected one of {', '.join(QUESTIONS)}")
    return QUESTIONS[name](_run(runs, query, "run"), query)


def to_json(value: Any) -> bytes:
    """As JSON, also with halves of surrogate pairs in it."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, default=_plain).encode()


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _run(runs: Sequence[OpenRun], query: Query, name: str) -> OpenRun:
    try:
        return runs[int(query.get(name, 0))]
    except (ValueError, IndexError):
        raise DataError(f"{name}: {query.get(name)!r}, expected 0 to {len(runs) - 1}") from None


def _recipe(run: OpenRun) -> str:
    for name in ("recipe.yaml", "evaluation.json"):
        if (run.path / name).exists():
            return (run.path / name).read_text(encoding="utf-8", errors="replace")
    return ""
