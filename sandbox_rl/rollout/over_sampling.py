"""Which groups a step starts when it starts more than it trains on, so that no slow one holds it up.

A *short* step starts N + M groups, trains on the first N to end and cancels the other M whole. What is
cancelled waits, and once N groups wait, a *long* step runs exactly those and cancels nothing. (Prior work
batches long responses likewise, without the same seeds: RollPacker, arXiv 2509.21009.)

**Why this does not favour short episodes.** Training on the first N alone would: of two groups, the longer
one is the likelier to be left out. Any rule that saves the wait must let go of slow groups, so it is fair
only if what was let go comes back *as it was*:

- A group has a number; its task and the seeds of all its samples follow from the run's seed and that number
  alone. Done again, it is the same draw, not a new one. Drawing anew would keep the first try of short groups
  and give long ones a second chance to be short, which is a bias within each task.
- A group that waits cannot be cancelled again, so every number is trained on exactly once. After any number
  of steps, what was trained on is what would have been without early stop but for the at most N groups that
  wait. When long steps come depends on N and M, never on lengths.

The second try is sampled with the weights of its time, so it is on policy. It equals the first as far as
equal seeds give equal episodes: the weights have moved by a few updates, engines batch differently and
commands are timed anew. What that changes, it changes for the groups that waited only.

Metrics of a single step are not comparable: long steps hold the long groups. `over_sampling/long_step` tells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.outputs import restoring

STATE_FILE = "over_sampling.json"
"""Name of the state's file in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A group that was cancelled.

    Args:
        step: generation in which.
        after_s: seconds into it.
    """

    group: int
    step: int
    after_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: groups to start, and how many of them to wait for. `waited` are those of a long step."""

    groups: tuple[int, ...]
    keep: int
    waited: tuple[Waiting, ...] = ()


class OverSampling:
    """Plans steps and remembers who waits. Each rank has groups of its own: rank, rank + world, …

    Args:
        over_sample: M as a share of N, above 0; rounded up.
        share: this rank's state → the states of all ranks, in their order.
    """

    def __init__(
        self,
        over_sample: float,
        *,
        rank: int = 0,
        world: int = 1,
        share: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        self._over_sample = over_sample
        self._rank = rank
        self._world = world
        self._share = share
        self._next = rank
        self._skipped: list[int] = []
        """New numbers below the next one: other ranks than now were to start them."""
        self._waiting: list[Waiting] = []
        self._everyone: list[Any] = []

    def plan(self, size: int) -> Plan:
        """The next step, of `size` groups to train on. Changes nothing."""
        if len(self._waiting) >= size:
            oldest = tuple(self._waiting[:size])
            return Plan(tuple(w.group for w in oldest), size, oldest)
        count = size + math.ceil(self._over_sample * size)
        numbers = [*self._skipped, *(self._next + i * self._world for i in range(count))]
        return Plan(tuple(numbers[:count]), size)

    def record(
        self, plan: Plan, step: int, seconds: Mapping[int, float], cut_after: float
    ) -> dict[str, float]:
        """Take over how a step went, and share it; every rank calls it once a step.

        Args:
            seconds: place in `plan.groups` → how long the group took, for those that ended.
            cut_after: seconds after which the others were cancelled.

        Returns:
            Metrics. `over_sampling/saved_s`, of a long step: how much longer the steps that had cancelled
            these groups would have taken with them, less this step's own time; an estimate from below,
            because this step trains as well.
        """
        late = [
            Waiting(group, step, cut_after) for place, group in enumerate(plan.groups) if place not in seconds
        ]
        metrics = {
            "over_sampling/cancelled": float(len(late)),
            "over_sampling/long_step": float(bool(plan.waited)),
        }
        if plan.waited:
            self._waiting = self._waiting[len(plan.waited) :]
            metrics["over_sampling/saved_s"] = _saved(plan.waited, seconds) - cut_after
        else:
            skipped = len(self._skipped[: len(plan.groups)])
            self._skipped = self._skipped[skipped:]
            self._next += (len(plan.groups) - skipped) * self._world
            self._waiting += late
        metrics["over_sampling/waiting"] = float(len(self._waiting))
        self._everyone = self._share([self.state()])
        return metrics

    def save(self, checkpoint: Path) -> None:
        """Write the state of all ranks into a checkpoint."""
        ranks = self._everyone or [self.state()]
        (checkpoint / STATE_FILE).write_text(json.dumps({"version": 1, "ranks": ranks}), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Take this rank's state; with another number of ranks, those who wait are dealt out anew.

        Raises:
            ModelError: the checkpoint was saved without it, or it is damaged.
        """
        advice = "resume with rollout.over_sample as the run was started"
        with restoring(checkpoint / STATE_FILE, "the groups that wait", advice) as state:
            ranks = state["ranks"]
            waiting = [[Waiting(**entry) for entry in state["waiting"]] for state in ranks]
            if len(ranks) == self._world:
                self._next = int(ranks[self._rank]["next"])
                self._skipped = [int(number) for number in ranks[self._rank]["skipped"]]
                self._waiting = waiting[self._rank]
            else:
                nexts = [int(state["next"]) for state in ranks]
                first = -(-max(nexts) // self._world) * self._world
                self._next = first + self._rank
                skipped = [n for n in range(min(nexts), first) if n >= nexts[n % len(nexts)]]
                skipped += [int(number) for state in ranks for number in state["skipped"]]
                self._skipped = sorted(skipped)[self._rank :: self._world]
                everyone = sorted((w for some in waiting for w in some), key=lambda w: (w.step, w.group))
                self._waiting = everyone[self._rank :: self._world]

    def state(self) -> dict[str, Any]:
        """Of this rank: the next groups that are new, and those that wait, as a checkpoint holds them."""
        return {
            "next": self._next,
            "skipped": self._skipped,
            "waiting": [asdict(w) for w in self._waiting],
        }


def _saved(waited: Iterable[Waiting], seconds: Mapping[int, float]) -> float:
    """Of each step that cancelled some of these groups: by how much the slowest of them outlasted it."""
    longer: dict[int, float] = {}
    for place, group in enumerate(waited):
        beyond = max(0.0, seconds[place] - group.after_s)
        longer[group.step] = max(longer.get(group.step, 0.0), beyond)
    return sum(longer.values())
