"""The first screen of a run: is it learning, what is happening, and its curves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from sandbox_rl.view.learning import findings, headline
from sandbox_rl.view.lines import json_file
from sandbox_rl.view.opened import OpenRun
from sandbox_rl.view.vocabulary import settings_of

POINTS = 800
"""Of a curve: of more updates, means of neighbours are shown."""
MOST_ALARMS = 200
IN_FLIGHT = 12
"""Episodes under way that are named, the longest first."""


def runs_of(runs: Sequence[OpenRun]) -> list[dict[str, Any]]:
    """What the page's menu shows."""
    names = [run.name for run in runs]
    return [
        {
            "run": number,
            "name": run.name if names.count(run.name) == 1 else f"{run.path.parent.name}/{run.name}",
            "path": str(run.path),
            "kind": run.kind,
            "state": run.state,
        }
        for number, run in enumerate(runs)
    ]


def overview(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """Everything on the first screen; without its curves where `have` names the version that is known."""
    version = f"{run.metrics.version} {run.history.version} {run.alarms.version}"
    rows = run.metrics.values
    found: dict[str, Any] = {
        "name": run.name,
        "path": str(run.path),
        "kind": run.kind,
        "state": run.state,
        "last_sign": run.last_sign,
        "clock": time.time(),
        "version": version,
        "behind": run.behind,
        "now": _now(run),
        "progress": _progress(run),
    }
    if query.get("have") == version:
        return found
    results = run.results()
    measured = {"": results} if "modes" in results else results
    return found | {
        "headline": headline(rows),
        "findings": findings(rows, run.alarms.values),
        "curves": _curves([row for row in rows if "loss" in row]),
        "held_out": _curves([row for row in rows if isinstance(row.get("eval/accuracy"), int | float)]),
        "events": _events(run),
        "alarms": run.alarms.values[-MOST_ALARMS:],
        "results": {when: _result(r) for when, r in measured.items() if isinstance(r, dict)},
    }


def _now(run: OpenRun) -> dict[str, Any]:
    # What an earlier start was at when it was killed goes on no more.
    states = run.select(
        "SELECT state, count(*) AS n FROM episodes WHERE state = 'ended' OR NOT replaced GROUP BY state"
    )
    counts = {row["state"]: row["n"] for row in states}
    live = []
    if run.state == "running":
        live = run.select(
            "SELECT id, phase, task_id, domain, turns, started FROM episodes "
            "WHERE state = 'live' AND NOT replaced ORDER BY started LIMIT ?",
            [IN_FLIGHT],
        )
    return {
        "episodes": counts.get("ended", 0),
        "in_flight": counts.get("live", 0),
        "live": live,
        "status": json_file(run.path / "status.json") if run.state == "running" else {},
        "golds": run.golds.failure,
    }


def _progress(run: OpenRun) -> dict[str, Any]:
    """Updates done and planned, and when the last of them should be done, by the median of the latest."""
    steps = [row for row in run.metrics.values if "loss" in row]
    done = int(steps[-1]["step"]) if steps else 0
    total = _steps_planned(run)
    recent = [row["time"] for row in steps[-21:] if isinstance(row.get("time"), int | float)]
    gaps = [b - a for a, b in pairwise(recent)]
    pace = median(gaps) if gaps else None
    left = None if not total or pace is None or run.finished else pace * max(0, total - done)
    if left is not None and pace is not None and recent:  # a part of the update under way is done
        left = max(0.0, left - min(pace, max(0.0, time.time() - recent[-1])))
    return {"done": done, "total": total, "seconds_per_step": pace, "seconds_left": left}


def _steps_planned(run: OpenRun) -> int | None:
    if run.finished and run.history.values:
        return int(run.history.values[-1].get("step", 0))
    try:
        steps = int(settings_of(run.path)["grpo"]["max_steps"])
    except (ValueError, KeyError, TypeError):
        return None
    return steps if steps > 0 else None


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """`step`, and every number that was logged, a column each; None where one is missing."""
    names = sorted(set().union(*rows) - {"epoch", "step"})
    size = -(-len(rows) // POINTS) or 1
    pieces = range(0, len(rows), size)
    columns: dict[str, list[Any]] = {"step": [rows[min(at + size, len(rows)) - 1]["step"] for at in pieces]}
    for name in names:
        values: list[Any] = [row.get(name) for row in rows]
        found = ([v for v in values[at : at + size] if type(v) in (int, float)] for at in pieces)
        means = [float(f"{sum(v) / len(v):.6g}") if v else None for v in found]
        if any(mean is not None for mean in means):
            columns[name] = means
    return columns


def _events(run: OpenRun) -> list[dict[str, Any]]:
    """What happened to the run, at which update."""
    found: list[tuple[Any, Any, str, str]] = []
    for e in run.history.values:
        if "event" in e:
            change = f"{e.get('field')}: {e.get('from')} → {e.get('to')}" if e["event"] == "changed" else ""
            found.append((e.get("step", 0), e.get("time"), str(e["event"]), change))
    first: dict[Any, Mapping[str, Any]] = {}
    for alarm in run.alarms.values:
        first.setdefault(alarm.get("name"), alarm)
    found += [(a.get("step", 0), a.get("time"), f"alarm {name}", "") for name, a in first.items()]
    saved = run.path.glob("checkpoints/checkpoint-*/complete.json")
    complete = (manifest.parent.name.rpartition("-")[2] for manifest in saved)
    found += [(step, None, "checkpoint", "") for step in sorted(int(n) for n in complete if n.isdigit())]
    return [dict(zip(("step", "time", "what", "detail"), values, strict=True)) for values in found]


def _result(found: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of each mode and part, with intervals."""
    modes = found.get("modes")
    return {
        mode: {
            "accuracy": value.get("accuracy"),
            "parts": {name: part.get("accuracy") for name, part in (value.get("parts") or {}).items()},
            "episodes": value.get("episodes"),
        }
        for mode, value in (modes.items() if isinstance(modes, dict) else ())
        if isinstance(value, dict)
    }
