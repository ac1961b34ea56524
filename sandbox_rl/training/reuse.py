"""What an earlier start had sampled and not trained on: a resumed run goes on with it.

An episode that has ended belongs to the weights that sampled it, and its log-probs are theirs. Synchronous
training gets to the same weights again, since it does the same updates from the same checkpoint, so each of
its episodes is used in the place it was sampled for; those that were going on start again from their seeds.
Asynchronous training need not: what arrives when is another order. There a group is used if all its episodes
have ended and every token of it is of weights that the checkpoint still has behind it, within the bound on
staleness. Where the recipe was changed nothing is used: the updates are others then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.cassette.cassette import base_id
from sandbox_rl.errors import DataError
from sandbox_rl.journal import Index, rollout_from_record
from sandbox_rl.journal.columns import ColumnError
from sandbox_rl.journal.index import read_record
from sandbox_rl.rollout.order import of_group
from sandbox_rl.training.groups import Advantage, group_of, group_requests
from sandbox_rl.training.samples import FinishedGroup, finished_group
from sandbox_rl.types import Rollout, Task

CHANGES_NOTHING = (
    *("report_to", "metrics", "evaluation", "rollout.concurrency"),
    *("grpo.save_steps", "grpo.save_total_limit", "grpo.logging_steps"),
)
"""Blocks and fields that neither what is sampled nor what is updated depends on."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an episode's last event lies.

    Args:
        versions: of the weights that sampled its turns.
    """

    id: str
    writer: str
    last: int
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FinishedEpisodes:
    """Episodes that have ended, by their ids without the attempt.

    Args:
        journal: the directory.
        places: id without the attempt → where it lies.
    """

    journal: Path
    places: Mapping[str, Place] = field(default_factory=dict)

    def readable(self) -> bool:
        """Whether this machine has the files."""
        return all(
            (self.journal / f"{writer}.jsonl").exists()
            for writer in {place.writer for place in self.places.values()}
        )

    def rollout(self, request: EpisodeRequest) -> Rollout | None:
        """What became of the episode of this task and seed; None where it had not ended."""
        place = self.places.get(base_id(request.id))
        if place is None:
            return None
        try:
            record = read_record(self.journal, place.writer, place.last)
        except (OSError, ColumnError, ValueError, KeyError, TypeError):
            return None
        if (record["task_id"], record.get("seed")) != (request.task.id, request.seed):
            return None
        return rollout_from_record(record, request.task)

    def groups(self) -> dict[int, int | None]:
        """Number of each group → version of the oldest weights that sampled for it; None where none did."""
        found: dict[int, list[int]] = defaultdict(list)
        for name, place in self.places.items():
            number = group_of(name)
            assert number is not None, "episodes of training only"
            found[number] += place.versions
        return {number: min(versions, default=None) for number, versions in sorted(found.items())}

    def of_groups(self, numbers: Iterable[int]) -> set[str]:
        """Ids of the episodes of some groups."""
        wanted = set(numbers)
        return {place.id for name, place in self.places.items() if group_of(name) in wanted}


def recorded_groups(
    finished: FinishedEpisodes,
    tasks: Sequence[Task],
    *,
    seed: int,
    size: int,
    kind: Advantage,
    leave_out_equal: bool,
) -> Iterator[tuple[int | None, FinishedGroup]]:
    """Each whole group for asynchronous training, with the version of the oldest weights that sampled for it.

    Args:
        seed: of the run; size: of a group.
        leave_out_equal: see `finished_group`.
    """
    for number, oldest in finished.groups().items():
        task = of_group(tasks, number, seed=seed)
        requests = group_requests(task, number, seed=seed, size=size)
        rollouts = [rollout for request in requests if (rollout := finished.rollout(request)) is not None]
        if len(rollouts) == size:
            group = finished_group(rollouts, number=number, kind=kind, leave_out_equal=leave_out_equal)
            yield oldest, group


def same_updates(changes: Iterable[str]) -> bool:
    """Whether a run whose recipe was changed in these fields does the same updates again."""
    return all(
        any(field == name or field.startswith(f"{name}.") for name in CHANGES_NOTHING) for field in changes
    )


def fit_for_sync(index: Index, rows: Sequence[Any]) -> dict[str, Place]:
    """Those of some episodes that training gets to again: ended, and not by a fault of ours."""
    return _whole(index, [row for row in rows if row["reward"] is not None or row["masked"]])


def fit_for_async(
    index: Index, rows: Sequence[Any], *, size: int, step: int, max_staleness: int
) -> dict[str, Place]:
    """Those whose whole group has ended, by weights that the checkpoint of `step` updates may still train on.

    Args:
        size: of a group.
    """
    groups: dict[int, dict[str, Place]] = defaultdict(dict)
    for name, place in _whole(index, rows).items():
        number = group_of(name)
        if number is not None and all(0 <= step - version <= max_staleness for version in place.versions):
            groups[number][name] = place
    return {name: place for group in groups.values() if len(group) == size for name, place in group.items()}


def _whole(index: Index, rows: Sequence[Any]) -> dict[str, Place]:
    """Those of training that have ended and whose tokens are as they were written; of an id that stands
    twice, the later one."""
    found: dict[str, Place] = {}
    for row in rows:
        if (row["phase"], row["state"]) != ("train", "ended"):
            continue
        try:
            turns = index.record(row["id"])["turns"]
        except DataError:
            continue
        versions = tuple(turn["weight_version"] for turn in turns)
        found[base_id(row["id"])] = Place(row["id"], row["writer"], row["last"], versions)
    return found
