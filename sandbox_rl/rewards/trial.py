"""Scorers are tried before the first episode: a reward that cannot work, or can be bought, stops a run there.

Every gold answer is looked at, in this process: they are the user's own text. One that `math` does not
understand is sound: it is compared as text, and counted by its source. Then, on a sample of each source:

- The gold answer earns 1 where scoring is deterministic; an empty answer and a wrong one are worth a number
  in [0, 1]; an endpoint that judges gives a verdict.
- Answers that need no work (`_degenerate`) earn no more than the share of tasks whose gold answer they are.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sandbox_rl.errors import ConfigError, SetupError
from sandbox_rl.rewards.base import BUILT_IN, BadGold, ComparedAsText, load_scorer
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.types import Task

PROBED = 32
"""Tasks of a source on which gold answers are tried and answers that need no work, and"""
PROBED_FIRST = 6
"""that all of them are tried on; those that earn something there are tried on the rest."""

MARGIN = 0.2
"""How much more than chance an answer that needs no work may earn on average: space for partial credit and
for gold answers that are the same in other words."""

_CONSTANTS = ("0", "1", "A", "yes", "no", "True", "[]")
_WRONG = "an answer"
_NO_GOLD = frozenset({"rules"})
"""Scorers whose tasks need no gold answer."""

IN_WORKERS = frozenset({"reasoning_gym"})
"""Scorers whose gold answers are looked at in scoring processes, since their library is imported there."""


@dataclass(frozen=True, slots=True)
class GoldReport:
    """What is to be known of gold answers.

    Args:
        bad: task id → reason, for those that their scorer cannot use.
        as_text: source (the task's domain) → task id → reason, for those that are compared as text.
        in_workers: places of the tasks whose scorers are looked at in scoring processes (`IN_WORKERS`).
    """

    bad: Mapping[str, str]
    as_text: Mapping[str, Mapping[str, str]]
    in_workers: tuple[int, ...]

    def __str__(self) -> str:
        """One line per source that has gold answers compared as text; "" where none has."""
        lines = []
        for source, found in self.as_text.items():
            first, reason = next(iter(found.items()))
            lines.append(f"{source}: {len(found)} compared as text, such as task {first!r} ({reason})")
        return "; ".join(lines)


def check_golds(tasks: Iterable[Task], scorers: Sequence[str] = ()) -> GoldReport:
    """Look at the gold answer of every task; about five thousand a second.

    Args:
        scorers: names that replace every task's own scorer.
    """
    bad: dict[str, str] = {}
    as_text: dict[str, dict[str, str]] = {}
    in_workers: list[int] = []
    for place, task in enumerate(tasks):
        for name in scorers or (task.scorer,):
            if name in IN_WORKERS:
                in_workers.append(place)
                continue
            try:
                _look(task, name)
            except ComparedAsText as error:
                as_text.setdefault(task.domain, {})[task.id] = str(error)
            except Exception as error:  # metadata of any shape reaches the checks
                bad.setdefault(task.id, f"{type(error).__name__}: {error}"[:300])
    return GoldReport(bad, as_text, tuple(in_workers))


def _look(task: Task, name: str) -> None:
    """Look at a gold answer, if the scorer is one of ours; raises what `LoadedScorer.check_gold` does."""
    if name in BUILT_IN and (check := load_scorer(name).check_gold) is not None:
        check(task)


@dataclass(frozen=True, slots=True)
class SourceSample:
    """Some tasks of one data source.

    Args:
        name: as reports call the source.
        gold_is_answer: whether the gold text is itself an answer.
        accept_degenerate: whether answers that need no work may earn more than chance.
    """

    name: str
    tasks: Sequence[Task]
    gold_is_answer: bool = True
    accept_degenerate: bool = False


async def try_rewards(scoring: ScoringPool, samples: Sequence[SourceSample]) -> tuple[str, ...]:
    """Try the scorers of all sources; returns warnings, one line each.

    Raises:
        ConfigError: a scorer fails, returns no number in [0, 1], does not end in time or pays a gold answer
            less than 1; or an answer that needs no work earns more than chance.
        SetupError: the judge's endpoint gives no verdict.
    """
    warnings: list[str] = []
    if any(scoring.needs_judge(task) for sample in samples for task in sample.tasks):
        warnings += await _try_judge(scoring)
    for sample in samples:
        tasks = [task for task in sample.tasks if scoring.rules_of(task)][:PROBED]
        if not tasks:
            continue
        warnings += await _try_scorers(scoring, sample, tasks)
        warnings += await _try_degenerate(scoring, sample, tasks)
    return tuple(warnings)


async def _try_judge(scoring: ScoringPool) -> list[str]:
    problem = await scoring.judge_problem()
    if not problem:
        return []
    if scoring.fallback is not None:
        return [f"reward.judge: {problem}; {scoring.fallback} scores in its place"]
    raise SetupError(
        f"reward.judge: the endpoint gives no verdict ({problem}); start it, fix base_url or model, or name "
        "a rule with reward.judge.fallback"
    )


async def _try_scorers(scoring: ScoringPool, sample: SourceSample, tasks: Sequence[Task]) -> list[str]:
    """Gold answers first, one by one for the first of each scorer: one that hangs shows after one limit."""
    warnings: list[str] = []
    seen: set[str] = set()
    for task in tasks:
        names = ", ".join(scoring.rules_of(task))
        if names in seen:
            continue
        seen.add(names)
        probes = ((task.answer, "its gold answer"), (_WRONG, f"the wrong answer {_WRONG!r}"), ("", "no text"))
        for text, what in probes:
            outcome = await scoring.probe(task, text, may_not_read=text != task.answer)
            if outcome.kind not in ("value", "bad_gold"):  # `check_gold` tells of bad gold answers
                raise ConfigError(
                    f"reward: source {sample.name}: scorer {names} fails on task {task.id!r} with "
                    f"{what}: {outcome.detail}; expected a number in [0, 1] from "
                    f"(answer, task) within {scoring.timeout_s:g} s"
                )
    if not sample.gold_is_answer:
        return warnings
    paid = [task for task in tasks if task.answer and not _NO_GOLD & set(scoring.rules_of(task))]
    outcomes = await asyncio.gather(*(scoring.probe(task, task.answer) for task in paid))
    for task, outcome in zip(paid, outcomes, strict=True):
        if outcome.kind == "bad_gold" or (outcome.kind == "value" and outcome.value > 1 - 1e-6):
            continue
        names = ", ".join(scoring.rules_of(task))
        earned = f"earns {outcome.value:g}" if outcome.kind == "value" else f"is not scored: {outcome.detail}"
        line = (
            f"source {sample.name}: the gold answer of task {task.id!r} {earned} by {names}; expected 1: "
            "fix scorer or row, or set gold_is_answer: false on the source if its gold text is no answer"
        )
        if _read_as_text(task, scoring.rules_of(task)):
            warnings.append(line)
            continue
        raise ConfigError(f"reward: {line}")
    return warnings[:1]


def _read_as_text(task: Task, names: Sequence[str]) -> bool:
    """Whether a scorer of ours compares this gold answer as text, which ends no run."""
    try:
        for name in names:
            _look(task, name)
    except (ComparedAsText, BadGold) as error:
        return isinstance(error, ComparedAsText)
    return False


async def _try_degenerate(scoring: ScoringPool, sample: SourceSample, tasks: Sequence[Task]) -> list[str]:
    """What answers that need no work earn, against the share of tasks whose gold answer they are."""
    probes = _degenerate(tasks, gold_is_answer=sample.gold_is_answer)
    first = await _earned(scoring, tasks[:PROBED_FIRST], probes)
    paid = {name: texts for name, texts in probes.items() if any(value > same for value, same in first[name])}
    found: list[str] = []
    for name, pairs in (await _earned(scoring, tasks, paid)).items():
        rate, chance = fmean(value for value, _ in pairs), fmean(same for _, same in pairs)
        above = sum(max(0.0, value - same) for value, same in pairs)
        if above > MARGIN * len(pairs) and above >= min(len(pairs), 1.5):
            found.append(f"{name} earns {rate:.2f} on average, expected at most {chance:.2f}")
    if not found:
        return _all_alike(sample, tasks)
    more = f" (and {len(found) - 1} more such answers)" if len(found) > 1 else ""
    names = ", ".join(dict.fromkeys(name for task in tasks for name in scoring.rules_of(task)))
    line = f"source {sample.name}, scorer {names}, {len(tasks)} tasks: {found[0]}{more}"
    if sample.accept_degenerate:
        return [f"{line}; accepted"]
    raise ConfigError(
        f"reward: {line}: a policy learns to answer that; fix the scorer, or set accept_degenerate: true on "
        "the source"
    )


async def _earned(
    scoring: ScoringPool, tasks: Sequence[Task], probes: Mapping[str, Sequence[str]]
) -> dict[str, list[tuple[float, float]]]:
    """Per probe and task: what the text earns, and 1 where it is the gold answer, else 0."""
    jobs = [
        (name, task, text) for name, texts in probes.items() for task, text in zip(tasks, texts, strict=False)
    ]
    outcomes = await asyncio.gather(*(scoring.probe(task, text) for _, task, text in jobs))
    earned: dict[str, list[tuple[float, float]]] = {name: [] for name in probes}
    for (name, task, text), outcome in zip(jobs, outcomes, strict=True):
        value = outcome.value if outcome.kind == "value" else 0.0
        earned[name].append((value, float(_same(text, task.answer))))
    return earned


def _all_alike(sample: SourceSample, tasks: Sequence[Task]) -> list[str]:
    differ = any(not _same(task.answer, tasks[0].answer) for task in tasks)
    if differ or len(tasks) < 8 or not tasks[0].answer or not sample.gold_is_answer:
        return []
    return [
        f"source {sample.name}: all {len(tasks)} gold answers looked at are {tasks[0].answer[:40]!r}, which "
        "a policy can learn by heart"
    ]


def _degenerate(tasks: Sequence[Task], *, gold_is_answer: bool) -> Mapping[str, Sequence[str]]:
    """What the probe is → its text for every task."""
    probes: dict[str, Sequence[str]] = {
        "an empty answer": [""] * len(tasks),
        **{f"the constant {text!r}": [text] * len(tasks) for text in _CONSTANTS},
        "the question itself": [task.prompt for task in tasks],
    }
    golds = [task.answer for task in tasks]
    if not gold_is_answer or not all(golds):
        return probes
    probes["another task's gold answer"] = [*golds[1:], golds[0]] if len(golds) > 1 else [_WRONG]
    commonest, _ = Counter(golds).most_common(1)[0]
    if len(golds) > 1:
        probes[f"the commonest gold answer {commonest[:40]!r}"] = [commonest] * len(golds)
    # Words enough that token overlap with one of them is worth little.
    options = list(dict.fromkeys((*dict.fromkeys(golds[:8]), *"ABCD", *_CONSTANTS)))
    probes["all options joined"] = [", ".join(options)] * len(golds)
    return probes


def _same(first: str, second: str) -> bool:
    """Whether two answers are equal but for case, layout and the spelling of a number."""
    try:
        return float(first) == float(second)
    except ValueError:
        return re.sub(r"\W+", "", first).casefold() == re.sub(r"\W+", "", second).casefold() != "" or (
            first.strip() == second.strip()
        )
