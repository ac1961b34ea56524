"""Is it learning, and if not why: what the metrics of a run say, in sentences.

The rules compare the first quarter of the updates with the last one (at least three each), by the difference
of two means with its normal 95 % interval; measurements on held-out tasks by their own intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from sandbox_rl.evaluation.statistics import NORMAL

ENOUGH = 6
"""Updates before anything is said about a trend."""
REWARD = ("reward/mean", "reward")
TOO_HIGH = (
    ("stop/max_tokens", 0.2, "{share} of the episodes run out of tokens."),
    ("stop/max_turns", 0.2, "{share} of the episodes run out of turns."),
    ("stop/timeout", 0.2, "{share} of the episodes run out of time."),
    ("stop/sandbox_dead", 0.2, "{share} of the episodes destroy their sandbox."),
    ("failures/no_call", 0.3, "{mean:.1f} turns without a tool call per episode."),
    ("failures/malformed", 0.3, "{mean:.1f} calls that cannot be read per episode."),
    ("mismatch/kl", 0.01, "Sampler and trainer disagree by {mean:.3f} nats per token."),
    ("clip_ratio/region_mean", 0.2, "{share} of the tokens are clipped: the updates are large."),
)
"""Metrics, the most that their mean should be, and what a higher one says."""
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and whether it is `good`, `note`, `warn` or `bad`."""

    level: str
    text: str


def headline(rows: Rows) -> Finding:
    """The answer to "is it learning?".

    Args:
        rows: of `metrics.jsonl`.
    """
    held = _held_out(rows)
    return held if held is not None and held.level != "note" else _trend(_values(rows, *REWARD))


def _held_out(rows: Rows) -> Finding | None:
    """What the first and the last measurement on held-out tasks say; None where there are not two."""
    held = [row for row in rows if isinstance(row.get("eval/accuracy"), int | float)]
    if len(held) < 2:
        return None
    first, last = held[0], held[-1]
    change = f"{_percent(first['eval/accuracy'])} → {_percent(last['eval/accuracy'])}"
    if last.get("eval/low", 0) > first.get("eval/high", 1):
        return Finding("good", f"It is learning: held-out accuracy {change}.")
    if last.get("eval/high", 1) < first.get("eval/low", 0):
        return Finding("bad", f"It is getting worse: held-out accuracy {change}.")
    return Finding("note", f"Held-out accuracy {change}: the intervals overlap, it does not tell yet.")


def _trend(rewards: Sequence[float]) -> Finding:
    if len(rewards) < ENOUGH:
        so_far = {0: "no update has finished", 1: "one update so far"}
        said = so_far.get(len(rewards), f"{len(rewards)} updates so far")
        return Finding("note", f"Too early to say: {said}.")
    size = max(3, len(rewards) // 4)
    first, last = rewards[:size], rewards[-size:]
    change = fmean(last) - fmean(first)
    half = NORMAL * math.sqrt(variance(first) / size + variance(last) / size)
    words = f"training reward {fmean(first):.2f} → {fmean(last):.2f} over {len(rewards)} updates"
    if change > half:
        return Finding("good", f"It is learning: {words}.")
    if change < -half:
        return Finding("bad", f"It is getting worse: {words}.")
    return Finding("warn", f"No trend yet: {words}.")


def findings(rows: Rows, alarms: Rows) -> list[Finding]:
    """What stands in the way of learning, or may do so soon; worst first."""
    steps = [row for row in rows if "loss" in row]
    late = steps[-max(3, len(steps) // 4) :]
    found = [*_alarms(alarms), *_rewards(late), *_means(late), *_distribution(steps, late)]
    held = _held_out(rows)
    found += [held] if held is not None and held.level == "note" else []
    order = {"bad": 0, "warn": 1, "note": 2, "good": 3}
    return sorted(found, key=lambda f: order[f.level])


def _alarms(alarms: Rows) -> Iterable[Finding]:
    counts = Counter(str(alarm.get("name")) for alarm in alarms)
    last = {str(alarm.get("name")): alarm for alarm in alarms}
    for name, count in counts.most_common():
        times = f", {count} times" if count > 1 else ""
        yield Finding(
            "bad", f"Alarm {name} at step {last[name].get('step')}{times}: {last[name].get('detail')}"
        )


def _rewards(late: Rows) -> Iterable[Finding]:
    equal, reward = _mean(late, "zero_variance_groups", "frac_reward_zero_std"), _mean(late, *REWARD)
    if equal is not None and equal > 0.5:
        why = "."
        if reward is not None:
            hard = "easy" if reward > 0.7 else "hard" if reward < 0.3 else None
            why = f": most tasks are too {hard} for the policy." if hard else "."
        yield Finding("warn", f"{_percent(equal)} of the groups have equal rewards and teach nothing{why}")


def _means(late: Rows) -> Iterable[Finding]:
    faults = _mean(late, "infra_fault_rate")
    if faults:
        level = "bad" if faults > 0.05 else "note"
        yield Finding(level, f"{_percent(faults)} of the episodes were lost to faults of ours.")
    for metric, most, text in TOO_HIGH:
        mean = _mean(late, metric)
        if mean is not None and mean > most:
            yield Finding("warn", text.format(mean=mean, share=_percent(mean)))
    if _mean(late, "update/changed") == 0:
        yield Finding("bad", "The weights do not change.")
    trained = _mean(late, "samples/trained")
    if trained is not None and trained < 0.5:
        yield Finding("warn", f"Only {_percent(trained)} of the sampled tokens are trained on.")


def _distribution(steps: Rows, late: Rows) -> Iterable[Finding]:
    early, now = _mean(steps[:5], "entropy"), _mean(late, "entropy")
    if early and now is not None and len(steps) >= ENOUGH and now < early / 10:
        yield Finding(
            "warn", f"Entropy fell from {early:.3f} to {now:.3f}: the policy hardly explores any more."
        )
    if (falls := tool_use_falls(steps)) is not None:
        yield falls


def tool_use_falls(rows: Rows) -> Finding | None:
    """Whether rewards rise while tools are used less and less."""
    steps = [row for row in rows if "loss" in row]
    calls = _values(steps, "calls/execute_bash")
    if len(calls) < ENOUGH:
        return None
    size = max(3, len(calls) // 4)
    before, after = fmean(calls[:size]), fmean(calls[-size:])
    if after >= before / 2 or _trend(_values(steps, *REWARD)).level != "good":
        return None
    words = f"{before:.1f} to {after:.1f} calls of the shell per episode"
    return Finding("warn", f"Rewards rise while tool use falls, from {words}: look at what pays.")


def _values(rows: Rows, *names: str) -> list[float]:
    """Of the first of the names that the rows have."""
    for name in names:
        found = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if found:
            return found
    return []


def _mean(rows: Rows, *names: str) -> float | None:
    found = _values(rows, *names)
    return fmean(found) if found else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
