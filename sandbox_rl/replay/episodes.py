"""An episode once more: the recorded turns through the one episode loop, in a fresh sandbox.

What the policy said is given; everything else is made again and compared exactly: the prompt's ids, the calls
that are parsed, each observation and its ids, why the episode stopped, the answer and the reward. Not
compared are times, which never come again. Commands that print the time, a process id or random numbers
differ by right; nothing here tells them from a sandbox that has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.builders import build_backend, build_engine
from sandbox_rl.cassette import Cassette, recordings
from sandbox_rl.cassette.cassette import as_written
from sandbox_rl.errors import DataError
from sandbox_rl.journal import rollout_record
from sandbox_rl.journal.records import turn_record
from sandbox_rl.observer import Observer, Observers
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.recorded import AnotherWay, RecordedPolicy
from sandbox_rl.replay.files import ChangedFiles, write_changes
from sandbox_rl.replay.recorded_run import RecordedRun
from sandbox_rl.types import Rollout, StopReason, Turn

TIMES = ("seconds", "generation_seconds", "execution_seconds", "scoring_seconds")
"""What is not compared."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that has come out another way.

    Args:
        turn: counted from 1; None of the episode as a whole.
        what: its name in the episode's record.
    """

    turn: int | None
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        where = "" if self.turn is None else f"turn {self.turn}, "
        return f"{where}{self.what}\n  recorded: {self.recorded}\n  replayed: {self.replayed}"


@dataclass(frozen=True, slots=True)
class EpisodeReplay:
    """What came of an episode; no `differences` if it came out the same."""

    episode: str
    turns: int
    reward: float | None
    differences: tuple[Difference, ...]


def replay_episode(
    path: Path, episode_id: str, overrides: Sequence[str] = (), *, files: bool = False
) -> EpisodeReplay:
    """Play an episode of a run again.

    Args:
        path: the run's directory.
        overrides: of its recipe, such as another sandbox.
        files: write down what each turn changed in the sandbox (`files.py`).

    Raises:
        UserError: no such run or episode, or what it stood on (data, tokenizer, sandbox) is not available.
        InfraFault: a failure on our side.
    """
    recorded_run = RecordedRun.open(path, overrides)
    with Cassette(path) as cassette:
        id = cassette.find(episode_id)
        record, trajectory = cassette.record(id), cassette.trajectory(id)
    if trajectory.stop is StopReason.INFRA_FAULT:
        raise DataError(
            f"{path}: episode {id!r} was lost to a fault of ours ({trajectory.fault}), expected one with "
            "turns; there is nothing to play again"
        )
    seen = _Seen()
    beyond: list[Difference] = []
    try:
        rollout = asyncio.run(_play(recorded_run, id, record, seen, files=files))
        ended = rollout_record(rollout) | {"masked": rollout.reward.masked}
    except AnotherWay as error:
        ended = {}
        beyond.append(Difference(None, "the end of the episode", trajectory.stop.value, str(error)))
    found = [*differences(record, as_written(seen.record() | ended)), *beyond]
    return EpisodeReplay(id, len(trajectory.turns), record["reward"], tuple(found))


class _Seen(Observer):
    """What has come of an episode, also where it did not come to its end."""

    def __init__(self) -> None:
        self._prompt: tuple[int, ...] = ()
        self._turns: list[Turn] = []

    def started(self, episode: EpisodeRequest, prompt_ids: tuple[int, ...]) -> None:
        self._prompt = prompt_ids

    def turn(self, episode: EpisodeRequest, turn: Turn) -> None:
        self._turns.append(turn)

    def record(self) -> dict[str, Any]:
        return {"prompt_ids": list(self._prompt), "turns": [turn_record(turn) for turn in self._turns]}


async def _play(
    recorded: RecordedRun, id: str, record: dict[str, Any], seen: Observer, *, files: bool
) -> Rollout:
    plain = record.get("mode") == "plain"
    (task,) = recorded.tasks([record["task_id"]]).values()
    chat, context = recorded.chat_and_context(tools=not plain)
    recipe = recorded.recipe
    recipe = recipe.model_copy(
        update={
            "pool": recipe.pool.model_copy(update={"warm": 0}),
            "rollout": recipe.rollout.model_copy(update={"retries": 0}),
        }
    )
    backend = None if plain else build_backend(recipe)
    changes = ChangedFiles(backend) if files and backend is not None else None
    policy = RecordedPolicy(recordings(recorded.run.path), max_context=context, strict=False)
    engine = build_engine(
        recipe,
        base_dir=recorded.run.path,
        agent=TokenAgent(policy, chat),
        sampling=Sampling(),
        backend=changes or backend,
    )
    try:
        async with engine:
            (rollout,) = await engine.run(
                [EpisodeRequest(id, task, record["seed"])],
                overlong="score" if record.get("phase") == "eval" else None,
                observer=seen if changes is None else Observers(seen, changes),
            )
    finally:
        if changes is not None:
            write_changes(recorded.run.path, id, changes)
    return rollout


def differences(record: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    """What differs between two records of an episode, in the order of happening.

    Args:
        new: without `stop` where it did not come to its end; only turns are compared then.
    """
    yield from _of_numbers(None, "prompt_ids", record["prompt_ids"], new["prompt_ids"])
    for number, (before, now) in enumerate(zip(record["turns"], new["turns"], strict=False), 1):
        yield from _of_turn(number, before, now)
    if "stop" not in new:
        return
    if len(record["turns"]) != len(new["turns"]):
        yield Difference(None, "number of turns", str(len(record["turns"])), str(len(new["turns"])))
    for what in ("stop", "answer", "reward", "reward_parts", "masked"):
        if record.get(what, new[what]) != new[what]:
            yield Difference(None, what, _short(record[what]), _short(new[what]))


def _of_turn(number: int, before: dict[str, Any], now: dict[str, Any]) -> Iterator[Difference]:
    yield from _of_numbers(number, "token_ids", before["token_ids"], now["token_ids"])
    for what in ("calls", "finish_reason"):
        if before[what] != now[what]:
            yield Difference(number, what, _short(before[what]), _short(now[what]))
    for place in range(max(len(before["observations"]), len(now["observations"]))):
        pair = [_observation(turn["observations"], place) for turn in (before, now)]
        for what in pair[0] | pair[1]:
            if pair[0].get(what) != pair[1].get(what):
                texts = _around(str(pair[0].get(what)), str(pair[1].get(what)))
                yield Difference(number, f"observation {place + 1}, {what}", *texts)
    yield from _of_numbers(number, "observation_ids", before["observation_ids"], now["observation_ids"])


def _observation(observations: Sequence[dict[str, Any]], place: int) -> dict[str, Any]:
    if place >= len(observations):
        return {}
    return {name: value for name, value in observations[place].items() if name not in TIMES}


def _of_numbers(
    turn: int | None, what: str, before: Sequence[int], now: Sequence[int]
) -> Iterator[Difference]:
    if list(before) == list(now):
        return
    place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), None)
    place = min(len(before), len(now)) if place is None else place

    def shown(ids: Sequence[int]) -> str:
        return f"{len(ids)} ids, from {place} on {list(ids[place : place + 8])}"

    yield Difference(turn, what, shown(before), shown(now))


def _around(before: str, now: str, width: int = 160) -> tuple[str, str]:
    """Both texts from a little before where they part."""
    place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), 0)
    start = max(0, place - width // 4)
    cut = "…" if start else ""
    return tuple(repr(cut + text[start : start + width]) for text in (before, now))  # type: ignore[return-value]


def _short(value: Any, most: int = 300) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"
