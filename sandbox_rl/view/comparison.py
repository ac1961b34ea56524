"""Episodes beside each other: a group, all attempts at a task, and two runs paired by their tasks."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from sandbox_rl.errors import DataError
from sandbox_rl.evaluation.statistics import mean_over_tasks, paired_difference
from sandbox_rl.view.episode import episode
from sandbox_rl.view.opened import OpenRun

MOST_SIBLINGS = 16
MOST_ATTEMPTS = 2_000


def group(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """The episodes of a group side by side, and the turn in which each first differs from the first of them.

    Args:
        query: `id` of one of them.
    """
    one = episode(run, {"id": query.get("id", "")})
    ids = [row["id"] for row in one["siblings"]]
    members = [episode(run, {"id": id}) for id in ids[:MOST_SIBLINGS]]
    first = members[0]["turns"]
    for member in members:
        same = zip(first, member["turns"], strict=False)
        alike = [a["thought"] == b["thought"] and a["calls"] == b["calls"] for a, b in same]
        member["differs_at"] = alike.index(False) if False in alike else len(alike)
        member["prompt"] = {"text": "", "chars": 0} if member is not members[0] else member["prompt"]
    return {
        "siblings": one["episode"]["siblings"],
        "task_id": one["episode"]["task_id"],
        "members": members,
        "all": len(ids),
    }


def task(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """All attempts at one task through training, in the order in which they were made.

    Args:
        query: `task_id`.
    """
    rows = run.select(
        "SELECT id, phase, step, stop, state, reward, turns, sampled, answer, siblings, replaced, s.end, "
        "s.advantage FROM episodes LEFT JOIN samples s ON s.episode = id WHERE task_id = ? ORDER BY started "
        "LIMIT ?",
        [query.get("task_id", ""), MOST_ATTEMPTS],
    )
    if not rows:
        raise DataError(f"{run.path}: no episode of a task {query.get('task_id')!r}")
    return {"task_id": query["task_id"], "attempts": rows}


def compare(first: OpenRun, second: OpenRun) -> dict[str, Any]:
    """Two runs paired by task: what both measured last on the tasks that both have.

    Returns:
        `phase` that is compared; means of each run and the difference, second minus first, with intervals;
        each task's mean rewards, those that changed most first.
    """
    phase = "eval" if all(_measured(run) for run in (first, second)) else "train"
    means = [_means(run, phase) for run in (first, second)]
    difference = paired_difference(means[1], means[0])
    shared = means[0].keys() & means[1].keys()
    order = sorted(shared, key=lambda t: (-abs(means[1][t] - means[0][t]), t))
    rows = [{"task_id": t, "first": means[0][t], "second": means[1][t]} for t in order]
    own = [mean_over_tasks([values[t] for t in sorted(shared)]) for values in means]
    return {
        "phase": phase,
        "names": [first.name, second.name],
        "means": own,
        "difference": difference,
        "tasks": rows[:500],
        "shared": len(shared),
    }


def _measured(run: OpenRun) -> bool:
    return run.kind == "evaluation" or bool(run.select("SELECT 1 FROM episodes WHERE phase = 'eval' LIMIT 1"))


def _means(run: OpenRun, phase: str) -> dict[str, float]:
    """Task → mean reward: of the last measurement, or of all training."""
    condition, values = "phase = ?", [phase]
    if run.kind == "evaluation":
        condition, values = "1", []
    elif phase == "eval":
        condition += " AND step = (SELECT max(step) FROM episodes WHERE phase = 'eval' AND state = 'ended')"
    found: dict[str, list[float]] = {}
    for row in run.select(
        f"SELECT task_id, reward FROM episodes WHERE {condition} AND state = 'ended' AND NOT replaced AND "
        "reward IS NOT NULL",
        values,
    ):
        found.setdefault(row["task_id"], []).append(row["reward"])
    return {name: fmean(rewards) for name, rewards in found.items()}
