"""A whole run scored once more by other rules: whose reward, advantage and gradient would have been others.

Episodes, answers and groups are the recorded ones; only scorers, and what budgets are worth, are others. What
was lost to a fault of ours has no reward by any rule. The run is not touched.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

from sandbox_rl.audit.rows import Advantages
from sandbox_rl.builders import build_scoring
from sandbox_rl.cassette import Cassette
from sandbox_rl.cassette.cassette import base_id
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.outputs import check_new, write_new
from sandbox_rl.replay.recorded_run import RecordedRun
from sandbox_rl.rewards.base import Scores
from sandbox_rl.rollout.judging import judge
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.rollout.slots import all_done
from sandbox_rl.training.estimator import advantage_of, advantage_rule
from sandbox_rl.training.groups import advantages
from sandbox_rl.training.views import SyncArgs
from sandbox_rl.types import Answer, AnswerStatus, StopReason, Task

AT_ONCE = 64
"""Answers that are being scored at the same time."""
SCORED = ("reward", "rollout", "data")
"""Blocks whose values can be replaced: what else a recipe says cannot change a score any more."""


@dataclass(frozen=True, slots=True)
class Rescored:
    """One episode by both rules: rewards, and advantages in its group; None where there is none.

    Args:
        trained: whether it is an episode of training, which alone have advantages.
    """

    episode: str
    task: str
    domain: str
    trained: bool
    reward: float | None
    new_reward: float | None
    advantage: float | None = None
    new_advantage: float | None = None

    @property
    def turned(self) -> bool:
        """Whether the sign of its gradient is another, none at all being one of the three."""
        return _sign(self.advantage) != _sign(self.new_advantage)


@dataclass(frozen=True, slots=True)
class Rescoring:
    """All episodes of a run that stand, in their order."""

    episodes: tuple[Rescored, ...]

    @property
    def changed(self) -> list[Rescored]:
        """Those whose reward or advantage is another."""
        return [e for e in self.episodes if (e.reward, e.advantage) != (e.new_reward, e.new_advantage)]

    def table(self) -> list[dict[str, Any]]:
        """A row per domain, and one of all."""
        by_domain: dict[str, list[Rescored]] = defaultdict(list)
        for episode in self.episodes:
            by_domain[episode.domain].append(episode)
        rows = [_row(domain, some) for domain, some in sorted(by_domain.items())]
        return rows if len(rows) == 1 else [*rows, _row("all", self.episodes)]


def rescore(path: Path, overrides: Sequence[str], *, display: Display) -> Rescoring:
    """Score every episode of a run with its recipe's rules as `overrides` change them.

    Raises:
        ConfigError: an override that changes no score, or scorers that cannot be used.
        DataError: no journal, or tasks that are not there any more.
    """
    for override in overrides:
        if override.partition(".")[0].partition("=")[0] not in SCORED:
            raise ConfigError(
                f"override {override!r}: it changes no score, expected keys of {', '.join(SCORED)}, such as "
                "reward.scorer=numeric"
            )
    before, after = RecordedRun.open(path), RecordedRun.open(path, overrides)
    with Cassette(path) as cassette:
        ids = [id for id, phase in cassette.phases.items() if phase != "cancelled"]
        if not ids:
            raise DataError(f"{path}: no episode has ended, expected some to score")
        tasks = after.tasks({cassette.tasks[id] for id in ids})
        with display.progress("Scoring", len(ids)) as bar:
            found = asyncio.run(_all(after, cassette, ids, tasks, bar.advance))
    return Rescoring(tuple(_with_advantages(found, rule_of(before.recipe), rule_of(after.recipe))))


async def _all(run: RecordedRun, *rest: Any) -> list[Rescored]:
    async with build_scoring(run.recipe, run.run.path) as scoring:
        return await score_all(scoring, run.recipe.rollout, *rest)


def rule_of(recipe: Recipe) -> Advantages:
    """What training by this recipe makes of a group's rewards."""
    kind = partial(advantages, kind=advantage_of(recipe.estimator))
    if recipe.mode == "async":
        return kind
    # The model need not be in reach to tell.
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "float32"})})
    args = cast(SyncArgs, training_arguments(recipe, Path(recipe.output_dir)))
    return advantage_rule(recipe.estimator, args) or kind


async def score_all(
    scoring: Scores,
    settings: RolloutSettings,
    cassette: Cassette,
    ids: Sequence[str],
    tasks: Mapping[str, Task],
    advance: Callable[[float | None], None] = lambda _: None,
) -> list[Rescored]:
    """Both rewards of each of these episodes, in their order; no advantages yet."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(id: str) -> Rescored:
        async with free:
            rescored = await _score(settings, scoring, cassette.record(id), tasks)
        advance(rescored.new_reward)
        return rescored

    async with all_done() as group:
        found = [group.create_task(one(id)) for id in ids]
    return [task.result() for task in found]


async def _score(
    settings: RolloutSettings, scoring: Scores, record: Mapping[str, Any], tasks: Mapping[str, Task]
) -> Rescored:
    task = tasks[record["task_id"]]
    trained = record.get("phase") == "train"
    reward = await judge(
        scoring,
        task,
        StopReason(record["stop"]),
        Answer(AnswerStatus(record["answer"]["status"]), record["answer"]["text"]),
        settings=settings,
        overlong=None if trained else "score",
        fault=record["fault"],
    )
    return Rescored(record["episode_id"], task.id, record["domain"], trained, record["reward"], reward.value)


def _with_advantages(
    episodes: Iterable[Rescored], before: Advantages, after: Advantages
) -> Iterable[Rescored]:
    """Each with both of its group's advantages; the order stays."""
    groups: dict[str, list[Rescored]] = defaultdict(list)
    order = list(episodes)
    for episode in order:
        if episode.trained:
            groups[base_id(episode.episode).rpartition("-")[0]].append(episode)
    found = {}
    for group in groups.values():
        old, new = before([e.reward for e in group]), after([e.new_reward for e in group])
        for episode, a, b in zip(group, old, new, strict=True):
            found[episode.episode] = replace(episode, advantage=a, new_advantage=b)
    return [found.get(episode.episode, episode) for episode in order]


def _row(domain: str, episodes: Sequence[Rescored]) -> dict[str, Any]:
    return {
        "domain": domain,
        "episodes": len(episodes),
        "mean reward": _mean([e.reward for e in episodes]),
        "new mean": _mean([e.new_reward for e in episodes]),
        "other reward": sum(e.reward != e.new_reward for e in episodes),
        "other advantage": sum(e.advantage != e.new_advantage for e in episodes),
        "other sign": sum(e.turned for e in episodes),
        "not judged": sum(e.reward is None for e in episodes),
        "now not judged": sum(e.new_reward is None for e in episodes),
    }


def _mean(rewards: Sequence[float | None]) -> float | None:
    judged = [r for r in rewards if r is not None]
    return sum(judged) / len(judged) if judged else None


def _sign(advantage: float | None) -> int:
    return 0 if not advantage else 1 if advantage > 0 else -1


def rescore_to_file(path: Path, overrides: Sequence[str], output: Path | None, *, display: Display) -> Path:
    """`rescore`, with a table on the display and everything that changed in a file of its own.

    Args:
        output: must not exist; by default a free name beside the run's directory.

    Raises:
        ConfigError: as `rescore`; or the file is there already.
    """
    if output is not None:
        check_new(output, "--output")
    found = rescore(path, overrides, display=display)
    table = found.table()
    display.table(
        f"{path} scored with {' '.join(overrides) or 'its own rules'}",
        list(table[0]),
        [[_shown(value) for value in row.values()] for row in table],
    )
    for episode in found.changed[:10]:
        display.say(
            f"{episode.episode}: reward {_shown(episode.reward)} -> {_shown(episode.new_reward)}, "
            f"advantage {_shown(episode.advantage)} -> {_shown(episode.new_advantage)}"
        )
    if len(found.changed) > 10:
        display.say(f"… and {len(found.changed) - 10} more")
    run = path.resolve()
    free = (run.with_name(f"{run.name}-rescored-{number}.json") for number in count(1))
    target = output or next(file for file in free if not file.exists())
    content = {"run": str(path), "overrides": list(overrides), "by_domain": table}
    content["changed"] = [asdict(episode) for episode in found.changed]
    write_new(target, json.dumps(content, indent=1) + "\n", "--output")
    return target


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
