"""What makes two evaluations the same measurement, so that a resumed one does not mix two.

Kept in `evaluation.json` beside the journal. `--resume` compares it with what was asked for and names the
first thing that differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.plan import EvaluationPlan
from sandbox_rl.types import Task

__all__ = ["FORMAT", "check_same", "identity_of", "short_hash", "task_key"]

FORMAT = 1


def short_hash(*parts: bytes | str) -> str:
    """Sixteen hexadecimal digits that follow from the parts, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def task_key(task: Task) -> str:
    """Equal for tasks that ask and score the same: prompt, gold answer, files, scorer and prompt set."""
    files = [item for name in sorted(task.files) for item in (name, task.files[name])]
    return short_hash(task.prompt, task.answer, task.scorer, task.domain, *files)


def identity_of(
    plan: EvaluationPlan, *, model: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that results depend on, as JSON values.

    Args:
        model: what tells the model from others.
        settings: name → JSON value: prompts, budgets, scoring, sandbox.
    """
    value = {
        "format": FORMAT,
        "model": dict(model),
        "modes": list(plan.modes),
        "samples": {part.name: part.samples for part in plan.parts},
        "seed": plan.seed,
        "sampling": plan.sampling.model_dump(),
        **settings,
        "tasks": {part.name: {task.id: task_key(task) for task in part.tasks} for part in plan.parts},
    }
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with another evaluation's journal.

    Raises:
        ConfigError: naming the first key that differs, with both values.
    """
    for key in wanted:
        was, now = stored.get(key), wanted[key]
        if was == now:
            continue
        others = [k for k in wanted if k != key and stored.get(k) != wanted[k]]
        more = f" (and {', '.join(others)})" if others else ""
        raise ConfigError(
            f"--resume: {key} of {where}{_difference(was, now)}{more}; resume with what the run was "
            "started with, or start another with a new --output"
        )


def _difference(was: Any, now: Any, place: str = "") -> str:
    """The first difference within two values in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in (*now, *was):
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{place}.{key}" if place else str(key))
    at = f", {place}" if place else ""
    return f"{at}: the run has {_short(was)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
