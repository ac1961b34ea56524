"""Recorded rollouts in the places where training takes new ones from."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.cassette import Cassette
from sandbox_rl.errors import DataError
from sandbox_rl.journal import rollout_from_record
from sandbox_rl.observer import Observer
from sandbox_rl.rollout.occupancy import Occupancy
from sandbox_rl.rollout.slots import FirstGroups
from sandbox_rl.training.asynchronous.compositions import Composition, checksum
from sandbox_rl.training.asynchronous.rows import packed_as, tensors_of
from sandbox_rl.training.asynchronous.source import Composed
from sandbox_rl.training.groups import Advantage, group_requests
from sandbox_rl.training.samples import FinishedGroup, finished_group
from sandbox_rl.types import Rollout, Task


def recorded(cassette: Cassette, episode_id: str, task: Task) -> Rollout:
    """An episode with its reward as it was trained on.

    Raises:
        DataError: it is not recorded.
    """
    record = cassette.record(episode_id)
    if record["task_id"] != task.id and task.id:
        raise DataError(
            f"{cassette.path}: episode {episode_id!r} is of task {record['task_id']!r}, expected "
            f"{task.id!r}; restore the data and the order that the run was started with"
        )
    return rollout_from_record(record, task)


class RecordedRollouts:
    """The part of `RolloutEngine` that synchronous training calls, answered from a journal.

    An async context manager, entered in the loop that its methods are called in.

    Args:
        path: the recorded run's directory.
    """

    def __init__(self, path: Path) -> None:
        self.occupancy = Occupancy()
        self._cassette = Cassette(path)

    async def __aenter__(self) -> RecordedRollouts:
        self._cassette.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._cassette.__exit__(*exc)

    async def run(
        self, requests: Sequence[EpisodeRequest], *, observer: Observer | None = None
    ) -> list[Rollout]:
        """What was recorded of these episodes.

        Raises:
            DataError: one of them is not recorded.
        """
        return [recorded(self._cassette, request.id, request.task) for request in requests]

    async def run_groups(
        self, groups: Sequence[Sequence[EpisodeRequest]], *, keep: int, observer: Observer | None = None
    ) -> FirstGroups:
        """The groups that had ended first when this was recorded; the others were cancelled.

        Raises:
            DataError: other than `keep` of them had.
        """
        ended = {
            place: await self.run(group)
            for place, group in enumerate(groups)
            if all(self._cassette.trained(request.id) for request in group)
        }
        if len(ended) != keep:
            raise DataError(
                f"{self._cassette.path}: {len(ended)} of the groups from {groups[0][0].id!r} on are recorded "
                f"whole, expected {keep}; this is not the journal of that run"
            )
        return FirstGroups(ended, dict.fromkeys(ended, 0.0), (), 0.0)


class RecordedUpdates:
    """A `Source` of updates that were composed before: the same tensors, or an error.

    Args:
        cassette: of the recorded run.
        compositions: by number of the update.
        group_size, advantage: of the run's groups.
        pad_token_id: of the run's tokenizer.
    """

    def __init__(
        self,
        cassette: Cassette,
        compositions: Mapping[int, Composition],
        *,
        group_size: int,
        advantage: Advantage,
        pad_token_id: int,
    ) -> None:
        self._cassette = cassette
        self._compositions = compositions
        self._group_size = group_size
        self._advantage: Advantage = advantage
        self._pad_token_id = pad_token_id
        self._step = 0

    def poll(self, timeout_s: float) -> Composed | None:
        """The next update.

        Raises:
            DataError: it is not recorded, or the journal gives other tensors than were trained on.
        """
        number = self._step + 1
        if number not in self._compositions:
            raise DataError(f"{self._cassette.path}: what update {number} was composed of is not recorded")
        composition = self._compositions[number]
        groups = [self._group(n) for n in composition.groups]
        samples = {(s.group, s.index): s for group in groups for s in group.samples}
        try:
            rows = packed_as(composition.rows, samples, ranks=composition.ranks)
        except KeyError as error:
            raise DataError(
                f"{self._cassette.path}: update {number} trained sample {error}, which the journal does not "
                "hold as one that is trained"
            ) from error
        tensors = tensors_of(rows, samples.values(), self._step, pad_token_id=self._pad_token_id)
        if checksum(tensors) != composition.checksum:
            raise DataError(
                f"{self._cassette.path}: update {number}: the journal gives other tokens, log-probs or "
                "advantages than were trained on; it, or the rule of advantages, has changed since"
            )
        self._step = number
        return Composed(tensors)

    def _group(self, number: int) -> FinishedGroup:
        requests = group_requests(Task("", "", ""), number, seed=0, size=self._group_size)
        rollouts = [recorded(self._cassette, request.id, request.task) for request in requests]
        return finished_group(rollouts, number=number, kind=self._advantage)


class NoRollouts:
    """A rollout worker that nothing is asked of: updates are there already."""

    def __init__(self) -> None:
        self.rollout_buffer: queue.Queue[FinishedGroup] = queue.Queue()
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()

    def start(self) -> None:
        """Nothing begins."""

    def stop(self) -> None:
        """Nothing ends."""
