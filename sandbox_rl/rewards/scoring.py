"""What a scoring process computes: an item and a verdict, both JSON values.

An item: {"do": "score" | "gold" | "read", "scorers": [[name, weight], …], "answer": text, "task": {…}}.
"score" values an answer, "gold" looks at the gold answer alone, "read" runs a scorer's own reading of the
answer (`base.reads_with`) and is given no gold. A verdict: {"kind": "value" | "bad_gold" | "error", …}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sandbox_rl.rewards import gym_verifiers
from sandbox_rl.rewards.base import BadGold, ComparedAsText, LoadedScorer, load_scorer
from sandbox_rl.types import Task

Verdict = dict[str, Any]

READ_BOTH_WAYS = frozenset({"math", "exact", "numeric", "choice"})
"""Scorers that are given an answer's other reading (`escapes.other_reading`) as well; the better counts."""

_EXAMPLES = {
    "math": (
        (r"\boxed{\frac{6\sqrt{3}}{4}}", "3*sqrt(3)/2"),
        ("x^2+3x+2", "(x+1)(x+2)"),
        ("(1, 2)", r"\left(1,2\right)"),
        ("x^2+5x+3", "x^2+5x+2"),
        ("5 km", "6 m"),
    ),
    "numeric": (("5 km", "6 m"),),
    "rouge_l": (("the cat sat", "a dog ran"),),
}
"""Answers and golds that make a scorer import and build what most scorings need. Ours, never a policy's."""


def task_item(task: Task, *, gold: bool = True) -> Verdict:
    """What a scorer may know of a task; files never, since documents can be megabytes."""
    item: Verdict = {"id": task.id, "prompt": task.prompt, "domain": task.domain, "scorer": task.scorer}
    if gold:
        item |= {"answer": task.answer, "metadata": dict(task.metadata)}
    return item


def warm(names: Sequence[str]) -> list[str]:
    """Import these scorers and what they need; returns the names of those that read answers by themselves.

    Raises:
        ConfigError: one cannot be imported.
    """
    for name in names:
        scorer = _load(name)
        for answer, gold in _EXAMPLES.get(name, ()):
            scorer.score(answer, Task("warm", "", gold, scorer=name))
        if name == "reasoning_gym":
            gym_verifiers.warm()
    return [name for name in names if _load(name).read is not None]


def judge_item(item: Mapping[str, Any]) -> Verdict:
    """The verdict on an item; exceptions become verdicts."""
    fields = dict(item["task"])
    task = Task(answer=fields.pop("answer", ""), **fields)
    scorers = [(str(name), float(weight)) for name, weight in item["scorers"]]
    if item["do"] == "gold":
        return _gold(scorers, task)
    if item["do"] == "read":
        return _read(scorers[0][0], item["answer"])
    return _mean(scorers, item, task)


def _mean(scorers: Sequence[tuple[str, float]], item: Mapping[str, Any], task: Task) -> Verdict:
    answer, other, read = item["answer"], item.get("other"), item.get("read", {})
    total = sum(weight for _, weight in scorers)
    parts: dict[str, float] = {}
    value = 0.0
    for name, weight in scorers:
        verdict = _one(_load(name), read.get(name, answer), task)
        if other and name in READ_BOTH_WAYS and verdict["kind"] == "value" and verdict["value"] < 1:
            again = _one(_load(name), other, task)
            if again["kind"] == "value" and again["value"] > verdict["value"]:
                verdict = again
        if verdict["kind"] != "value":
            return verdict
        value += weight * verdict["value"] / total
        if len(scorers) > 1:
            parts[name] = verdict["value"]
        parts.update(verdict["parts"])
    return {"kind": "value", "value": value, "parts": parts}


def _gold(scorers: Sequence[tuple[str, float]], task: Task) -> Verdict:
    for name, _ in scorers:
        scorer = _load(name)
        if scorer.check_gold is None:
            continue
        try:
            scorer.check_gold(task)
        except ComparedAsText:
            continue  # sound, and compared otherwise
        except Exception as error:
            return {"kind": "bad_gold", "detail": _why(error)}
    return {"kind": "value", "value": 1.0, "parts": {}}


def _read(name: str, answer: str) -> Verdict:
    scorer = _load(name)
    if scorer.read is None:
        return {"kind": "error", "detail": f"{name}: reads no answers"}
    try:
        return {"kind": "value", "value": 1.0, "parts": {}, "read": scorer.read(answer)}
    except Exception as error:
        return {"kind": "error", "detail": f"{name}: {_why(error)}"}


def _one(scorer: LoadedScorer, answer: Any, task: Task) -> Verdict:
    try:
        result = scorer.score(answer, task)
    except BadGold as error:
        return {"kind": "bad_gold", "detail": f"{scorer.name}: {error}"}
    except Exception as error:
        return {"kind": "error", "detail": f"{scorer.name}: {_why(error)}"}
    try:
        parts = {str(k): float(v) for k, v in result.items()} if isinstance(result, Mapping) else {}
        value = parts.pop("value") if isinstance(result, Mapping) else float(result)
    except KeyError:
        return {"kind": "error", "detail": f"{scorer.name}: the returned mapping has no 'value'"}
    except (TypeError, ValueError):
        return {"kind": "error", "detail": f"{scorer.name}: returned {result!r}"[:300]}
    if not math.isfinite(value) or not 0 <= value <= 1:
        return {"kind": "error", "detail": f"{scorer.name}: returned {value}, expected a number in [0, 1]"}
    return {"kind": "value", "value": value, "parts": parts}


@lru_cache(maxsize=256)
def _load(name: str) -> LoadedScorer:
    return load_scorer(name)


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
