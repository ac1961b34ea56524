"""Reading recorded episodes by their ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from sandbox_rl.errors import DataError
from sandbox_rl.journal import Index, trajectory_from_record
from sandbox_rl.policies.recorded import Recordings
from sandbox_rl.types import Trajectory


def journal_of(path: Path) -> Path:
    """The journal of a run's directory, or the journal that the path itself is.

    Raises:
        DataError: neither.
    """
    for directory in (path / "journal", path):
        if any(directory.glob("*.jsonl")) and any(directory.glob("*.tokens")):
            return directory
    raise DataError(f"{path}: there is no journal, expected a run's directory with recorded episodes")


def base_id(episode_id: str) -> str:
    """The id without its attempt: which start of a run sampled it changes nothing of what it is."""
    return re.sub(r"-r\d+$", "", episode_id)


def as_written(value: Any) -> Any:
    """JSON values as the journal has them: what JSON cannot hold is written as null or as text."""
    try:
        return orjson.loads(orjson.dumps(value))
    except TypeError:  # half a surrogate pair or an integer of more than 64 bits
        return json.loads(json.dumps(value, default=str))


class Cassette:
    """The episodes of a run that have ended and stand; a context manager. Writes nothing.

    An id is found whatever its attempt: `train-000003-0001` finds `train-000003-0001-r2`, which a run that
    was resumed twice has sampled.

    Args:
        path: a run's directory or its journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Cassette:
        self._index = Index(journal_of(self.path), memory=True).__enter__()
        self._index.refresh()
        rows = self._index.select(
            "SELECT id, phase, task_id FROM episodes WHERE state = 'ended' AND NOT replaced "
            "ORDER BY ended, rowid"
        )
        self.tasks: dict[str, str] = {row["id"]: row["task_id"] for row in rows}
        """Id → its task's, of all episodes."""
        self.phases: dict[str, str | None] = {row["id"]: row["phase"] for row in rows}
        """Id → phase, in the order in which they ended; `cancelled` are in no update."""
        self._known = {base_id(id): id for id in self.phases} | {id: id for id in self.phases}
        return self

    def __exit__(self, *exc: object) -> None:
        self._index.__exit__(*exc)

    def trained(self, episode_id: str) -> bool:
        """Whether the episode has ended and was not cancelled with its group."""
        found = self._known.get(episode_id) or self._known.get(base_id(episode_id))
        return found is not None and self.phases[found] != "cancelled"

    def find(self, episode_id: str) -> str:
        """The id as it is recorded.

        Raises:
            DataError: no such episode has ended and stands.
        """
        found: str | None = self._known.get(episode_id) or self._known.get(base_id(episode_id))
        if found is None:
            told = self._index.select(
                "SELECT state, replaced FROM episodes WHERE id = ? LIMIT 1", [episode_id]
            )
            why = "no such episode" if not told else "it was replaced" if told[0]["replaced"] else "no end"
            raise DataError(
                f"{self.path}: episode {episode_id!r} is not recorded ({why}), expected the id of one of "
                f"{len(self.phases)} episodes that have ended, such as {next(iter(self.phases), 'none')}"
            )
        return found

    def record(self, episode_id: str) -> dict[str, Any]:
        """An episode as `journal.rollout_record` gives it.

        Raises:
            DataError: see `find`; or its tokens are not what was written.
        """
        return self._index.record(self.find(episode_id))

    def trajectory(self, episode_id: str) -> Trajectory:
        """What was recorded of an episode.

        Raises:
            DataError: see `record`; or an endpoint's episode, of which there are no ids.
        """
        trajectory = trajectory_from_record(self.record(episode_id))
        if trajectory.chat is not None:
            raise DataError(
                f"{self.path}: episode {episode_id!r} is an endpoint's, which keeps its token ids to itself; "
                "only a policy of token ids can be played again"
            )
        return trajectory


@contextmanager
def recordings(path: Path) -> Iterator[Recordings]:
    """What `RecordedPolicy` plays."""
    with Cassette(path) as cassette:
        yield cassette.trajectory
