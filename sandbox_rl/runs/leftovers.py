"""What a start has left behind its last checkpoint, when the next one goes on from there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.journal import Index
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import set_lines_aside, step_of_line
from sandbox_rl.training.asynchronous.progress import MAX_STALENESS, GroupProgress
from sandbox_rl.training.checkpoints import step_of
from sandbox_rl.training.groups import group_of
from sandbox_rl.training.reuse import FinishedEpisodes, Place, fit_for_async, fit_for_sync, same_updates


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Episodes that are not behind a checkpoint.

    Args:
        replaced: those that are sampled again, or were going on.
        highest: step of those that ended, or -1.
        finished: those that are not sampled again.
    """

    replaced: tuple[str, ...]
    highest: int
    finished: FinishedEpisodes


def leftovers_of(
    run: RunDirectory,
    checkpoint: Path | None,
    recipe: Recipe,
    *,
    again: bool,
    changes: Iterable[str],
    sizes: Mapping[str, Any],
) -> Leftovers:
    """The episodes behind a checkpoint, or all of a run that has none.

    Args:
        again: whether the evaluation of the checkpoint's step is done again.
        changes: fields of the recipe that are others from now on.
        sizes: see `resume.sizes_of`.
    """
    journal, step = run.journal, 0 if checkpoint is None else step_of(checkpoint)
    if not journal.is_dir():
        return Leftovers((), -1, FinishedEpisodes(journal))
    asynchronous = recipe.mode == "async"
    behind: frozenset[int] = frozenset()
    if asynchronous and checkpoint is not None:
        behind = GroupProgress().restore(checkpoint)

    def stays(id: str, phase: str | None, at: int) -> bool:
        if asynchronous and phase == "train":  # else its group is not trained on yet
            return group_of(id) in behind
        return at < step or (at == step and phase == "eval" and not again)

    with Index(journal) as index:
        index.refresh()
        rows = index.select("SELECT * FROM episodes WHERE NOT replaced AND step >= 0 ORDER BY rowid")
        gone = [row for row in rows if not stays(row["id"], row["phase"], row["step"])]
        places: Mapping[str, Place] = {}
        if same_updates(changes):
            bound = int(recipe.grpo.get("max_staleness", MAX_STALENESS))
            size = int(sizes["episodes per group"])
            places = (
                fit_for_async(index, gone, size=size, step=step, max_staleness=bound)
                if asynchronous
                else fit_for_sync(index, gone)
            )
    finished = {place.id for place in places.values()}
    replaced = tuple(row["id"] for row in gone if row["id"] not in finished)
    highest = max((row["step"] for row in gone if row["state"] == "ended"), default=-1)
    return Leftovers(replaced, highest, FinishedEpisodes(journal, places))


def set_aside_beyond(run: RunDirectory, step: int, *, start: int, again: bool, committed: int) -> None:
    """Move metrics, alarms and the ledger's lines of updates that are done again to `replaced/`.

    Args:
        step: updates of the checkpoint.
        start: number of starts so far, for the names of the files.
        again: whether the evaluation of that step is done again.
        committed: bytes of the ledger that belong to the checkpoint.
    """
    at = 0

    def not_committed(line: bytes) -> bool:
        nonlocal at
        at += len(line)
        return at > committed

    def metric(line: bytes) -> bool:
        found, names = step_of_line(line), line[:4000]
        # What a start says of itself as it ends is said again by the last one.
        again_there = b'"train_runtime"' in names or (again and b'"eval/' in names)
        return found is not None and (found > step or (found == step and again_there))

    replaced = {run.metrics: metric, run.path / "alarms.jsonl": metric, run.ledger: not_committed}
    for path, goes in replaced.items():
        set_lines_aside(path, goes, run.path / "replaced" / f"{path.stem}-{start}.jsonl")
