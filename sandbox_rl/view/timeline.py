"""Where the time of a step went: bars of its episodes, how many did what at once, and idle time by cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from sandbox_rl.errors import DataError
from sandbox_rl.view.episode import event_pages, read_all
from sandbox_rl.view.opened import OpenRun

MOST = 256
"""Episodes that are drawn."""
POINTS = 240


def timeline(run: OpenRun, query: Mapping[str, str]) -> dict[str, Any]:
    """The episodes of a step with their bars.

    Args:
        query: `step`, and `phase`, by default "train".

    Returns:
        `episodes`: each with `bars`: (what, start, end) in seconds since the step's first episode began;
        `load`: how many generated and executed at `POINTS` instants; `idle`: seconds in which nobody
        generated, by cause; `metrics` of the step.
    """
    try:
        step = int(query.get("step", 0))
    except ValueError:
        raise DataError(f"step: {query.get('step')!r}, expected a number") from None
    rows = run.select(
        "SELECT id, started, ended, reward, stop FROM episodes WHERE step = ? AND phase = ? AND NOT replaced "
        "ORDER BY started LIMIT ?",
        [step, query.get("phase", "train"), MOST],
    )
    if not rows:
        raise DataError(f"{run.path}: no episodes of step {step}")
    origin = min(row["started"] for row in rows)
    drawn = []
    for row in rows:
        found, places = event_pages(run, row["id"])
        bars = bars_of(read_all(run, found, places))
        moved = [(what, round(a - origin, 4), round(b - origin, 4)) for what, a, b in bars]
        drawn.append({"id": row["id"], "reward": row["reward"], "stop": row["stop"], "bars": moved})
    end = max((bar[2] for e in drawn for bar in e["bars"]), default=0.0)
    metrics = next((m for m in run.metrics.values if m.get("step") == step + 1 and "loss" in m), {})
    wanted = ("step_time", "perf/", "seconds/", "time/")
    return {
        "step": step,
        "seconds": end,
        "episodes": drawn,
        "load": _load(drawn, end),
        "idle": _idle(drawn, end),
        "metrics": {k: v for k, v in metrics.items() if k.startswith(wanted)},
    }


def bars_of(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(what, start, end) in Unix seconds: `generate`, `tool`, `wait` between them, `score` at the end.

    A turn says when it ended and how long its generation and its calls took; what is left before them is
    waiting. Journals without a turn's time have the turns one after the other, and the wait at the end.
    """
    now = events[0]["time"]
    bars: list[tuple[str, float, float]] = []
    for event in events[1:]:
        if event["event"] == "turn":
            spent = event["generation_seconds"] + event["execution_seconds"]
            end = max(now, event.get("time", now + spent))
            begun = max(now, end - spent)
            tool = max(begun, end - event["execution_seconds"])
            bars += [("wait", now, begun), ("generate", begun, tool), ("tool", tool, end)]
            now = end
        elif event["event"] in ("ended", "abandoned"):
            scored = max(now, event["time"] - (event.get("scoring_seconds") or 0.0))
            bars += [("wait", now, scored), ("score", scored, max(scored, event["time"]))]
    return [bar for bar in bars if bar[2] - bar[1] > 1e-4]


def _load(drawn: Sequence[Mapping[str, Any]], end: float) -> dict[str, list[float]]:
    marks = [end * i / (POINTS - 1) for i in range(POINTS)]
    out: dict[str, list[float]] = {"at": [round(mark, 4) for mark in marks]}
    for kind in ("generate", "tool"):
        changes = sorted(
            change for e in drawn for what, a, b in e["bars"] if what == kind for change in ((a, 1), (b, -1))
        )
        counts, level, at = [], 0, 0
        for mark in marks:
            while at < len(changes) and changes[at][0] <= mark:
                level += changes[at][1]
                at += 1
            counts.append(float(level))
        out[kind] = counts
    return out


def _idle(drawn: Sequence[Mapping[str, Any]], end: float) -> dict[str, float]:
    """Seconds in which no episode generated, by what the others did: tools, scoring, or only waiting."""
    edges = sorted({0.0, end, *(t for e in drawn for _, a, b in e["bars"] for t in (a, b))})
    starts = sorted((a, what) for e in drawn for what, a, _ in e["bars"])
    stops = sorted((b, what) for e in drawn for what, _, b in e["bars"])
    active = dict.fromkeys(("wait", "generate", "tool", "score"), 0)
    idle = {"tools": 0.0, "scoring": 0.0, "sandboxes and queues": 0.0}
    i = j = 0
    for left, right in pairwise(edges):
        while i < len(starts) and starts[i][0] <= left:
            active[starts[i][1]] += 1
            i += 1
        while j < len(stops) and stops[j][0] <= left:
            active[stops[j][1]] -= 1
            j += 1
        if not active["generate"]:
            cause = "tools" if active["tool"] else "scoring" if active["score"] else "sandboxes and queues"
            idle[cause] += right - left
    return {cause: round(seconds, 3) for cause, seconds in idle.items() if seconds > 1e-3}
