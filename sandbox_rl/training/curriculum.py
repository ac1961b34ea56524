"""Which tasks are rolled out: drawn by domain and difficulty, and groups that teach nothing refilled.

All ranks hold the same counts and draw from (run seed, number of the generation), so they agree without
messages; what they measure is shared once per generation, what they replace once per round. Counts lie in the
checkpoint, so a resumed run draws alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sandbox_rl.errors import ConfigError
from sandbox_rl.outputs import restoring
from sandbox_rl.seeds import derive_seed
from sandbox_rl.training.config import CurriculumSettings
from sandbox_rl.types import Rollout

STATE_FILE = "curriculum.json"
"""Name of the counts' file in a checkpoint."""

Outcome = tuple[str, float, int]
"""Of one group: task id, sum of rewards clipped to [0, 1], judged rollouts."""


def outcome_of(group: Sequence[Rollout]) -> Outcome:
    """What a group says about its task."""
    values = [min(1.0, max(0.0, r.reward.value)) for r in group if r.reward.value is not None]
    return group[0].task.id, sum(values), len(values)


class Curriculum:
    """Draws tasks and remembers how they went.

    Args:
        domains: task id → domain, of all training tasks, in order.
        share: a list of this rank → those of all ranks in one, in the order of the ranks.

    Raises:
        ConfigError: domain weights that do not fit the data.
    """

    def __init__(
        self,
        domains: Mapping[str, str],
        settings: CurriculumSettings,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        share: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        self._ids = list(domains)
        self._position = {task_id: index for index, task_id in enumerate(self._ids)}
        self._domain_of = list(domains.values())
        self.settings = settings
        self._seed = seed
        self._rank = rank
        self._world = world
        self._share = share
        self._visits = np.zeros(len(self._ids))
        self._reward = np.zeros(len(self._ids))
        self._judged = np.zeros(len(self._ids))
        weights = _checked_weights(settings.domain_weights, set(self._domain_of))
        self._weights = weights or {"": 1.0}
        names = np.array(self._domain_of) if weights else np.full(len(self._ids), "")
        self._pools = {name: np.flatnonzero(names == name) for name in self._weights}

    def draw(self, task_ids: Sequence[str], generation: int) -> list[str]:
        """This rank's tasks of a generation, one per group, in place of `task_ids`, the uniform order's."""
        if self.settings.sampling == "uniform" and not self.settings.domain_weights:
            return list(task_ids)
        local = len(task_ids)
        rng = np.random.default_rng(derive_seed(self._seed, "draw", generation))
        places = self._domain_of_places(local * self._world, rng)
        drawn: list[int] = [0] * len(places)
        for name in self._weights:
            mine = [place for place, domain in enumerate(places) if domain == name]
            order = self._order(self._pools[name], rng)
            for number, place in enumerate(mine):
                drawn[place] = int(order[number % len(order)])
        return [self._ids[index] for index in drawn[self._rank * local : (self._rank + 1) * local]]

    def substitutes(
        self, replaced: Sequence[str], used: Collection[str], generation: int, refill: int
    ) -> list[str | None] | None:
        """A further task for each replaced one, of its domain if domains are weighted; None if none is left
        for it, or, instead of the list, for any group of any rank.

        The same whatever the number of ranks: the places of all are filled in their order.

        Args:
            replaced, used: of this rank; those used in this generation, by any rank, are not drawn again.
            refill: number of the round, from 0. Every rank must call it once a round.
        """
        everyone = self._share([(list(replaced), sorted(used))])
        mine = sum(len(names) for names, _ in everyone[: self._rank])
        found = self._substitutes(
            [name for names, _ in everyone for name in names],
            {name for _, names in everyone for name in names},
            np.random.default_rng(derive_seed(self._seed, "refill", generation, refill)),
        )
        if not any(found):
            return None
        return found[mine : mine + len(replaced)]

    def _substitutes(
        self, replaced: Sequence[str], taken: Collection[str], rng: np.random.Generator
    ) -> list[str | None]:
        orders = {
            name: iter([i for i in self._order(pool, rng) if self._ids[i] not in taken])
            for name, pool in self._pools.items()
        }
        out: list[str | None] = []
        for task_id in replaced:
            name = self._domain_of[self._position[task_id]] if self.settings.domain_weights else ""
            index = next(orders[name], None)
            out.append(None if index is None else self._ids[index])
        return out

    def record(self, outcomes: list[Outcome]) -> None:
        """Count this rank's outcomes and those of the others. Every rank must call it once a generation."""
        for task_id, reward, judged in self._share(outcomes):
            index = self._position[task_id]
            self._visits[index] += 1
            if judged:
                decay = self.settings.memory
                self._reward[index] = decay * self._reward[index] + reward
                self._judged[index] = decay * self._judged[index] + judged

    def solve_rate(self, task_id: str) -> float:
        """Running mean of a task's rewards with one solved and one failed rollout to begin with."""
        return float(self._rates()[self._position[task_id]])

    def save(self, checkpoint: Path) -> None:
        """Write the counts into a checkpoint."""
        seen = np.flatnonzero(self._visits)
        counts = {
            self._ids[i]: [int(self._visits[i]), float(self._reward[i]), float(self._judged[i])] for i in seen
        }
        (checkpoint / STATE_FILE).write_text(json.dumps({"version": 1, "tasks": counts}), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Take the counts of a checkpoint; tasks that the data no longer hold are left out.

        Raises:
            ModelError: the checkpoint was saved without them, or they are damaged.
        """
        advice = "resume with the curriculum block that the run was started with"
        with restoring(checkpoint / STATE_FILE, "a curriculum's counts", advice) as state:
            found = state["tasks"].items()
            known = {self._position[name]: counts for name, counts in found if name in self._position}
            for index, (visits, reward, judged) in known.items():
                self._visits[index], self._reward[index], self._judged[index] = visits, reward, judged

    def _rates(self) -> npt.NDArray[np.float64]:
        rates: npt.NDArray[np.float64] = (self._reward + 1) / (self._judged + 2)
        return rates

    def _order(self, pool: npt.NDArray[np.intp], rng: np.random.Generator) -> npt.NDArray[np.intp]:
        """The tasks of a pool in the order in which they are drawn.

        By difficulty: without replacement with weights floor + 4p(1−p), p being the running solve rate.
        p(1−p) is the variance of the reward, the measure of arXiv 2502.12272; the draw is an
        exponential race (Efraimidis & Spirakis 2006). Uniform: the least visited first, ties at random.
        """
        if self.settings.sampling == "difficulty":
            rates = self._rates()[pool]
            weights = self.settings.floor + 4 * rates * (1 - rates)
            keys = rng.exponential(size=len(pool)) / weights
        else:
            keys = self._visits[pool] + rng.random(len(pool))
        order: npt.NDArray[np.intp] = pool[np.argsort(keys, kind="stable")]
        return order

    def _domain_of_places(self, count: int, rng: np.random.Generator) -> list[str]:
        """Systematic sampling: each domain gets its share of `count`, rounded down or up, in random order."""
        names = list(self._weights)
        bounds = np.cumsum([self._weights[name] for name in names])
        points = (rng.random() + np.arange(count)) / count * bounds[-1]
        chosen = np.minimum(np.searchsorted(bounds, points, side="right"), len(names) - 1)
        return [names[i] for i in rng.permutation(chosen)]


def _checked_weights(weights: Mapping[str, float], domains: set[str]) -> dict[str, float]:
    if not weights:
        return {}
    here = ", ".join(sorted(domains))
    for name in weights:
        if name not in domains:
            raise ConfigError(
                f"curriculum.domain_weights: no training task is of {name!r}, expected one of {here}; "
                "name only those"
            )
    for name in sorted(domains):
        if name not in weights:
            raise ConfigError(
                f"curriculum.domain_weights: the domain {name!r} has no weight, expected one for each of "
                f"{here}; 0 leaves a domain out"
            )
    kept = {name: weight for name, weight in weights.items() if weight > 0}
    if not kept:
        raise ConfigError("curriculum.domain_weights: all are 0, expected one above 0; raise one")
    return kept
