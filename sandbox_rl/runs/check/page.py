"""`sandbox-rl check`: whether each sample of a run was used exactly as scheduled, from its files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.errors import DataError, ModelError
from sandbox_rl.journal.audit import without_checksums
from sandbox_rl.ledger import Ledger, SampleEnd, read_ledger
from sandbox_rl.lock import check_alone
from sandbox_rl.runs.check.accounts import Accounts, Violation
from sandbox_rl.runs.check.draws import Draws, not_drawn_again
from sandbox_rl.runs.check.facts import Facts
from sandbox_rl.runs.check.schedule import Schedule
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.checkpoints import complete_checkpoints, step_of

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """What a check found.

    Args:
        ends: how many samples ended how.
        pending: episodes that have ended and whose updates have not finished.
        not_compared: what of the run does not follow from its files.
        violation: the first rule that is broken; None where all hold.
    """

    updates: int
    groups: int
    ends: Mapping[SampleEnd, int]
    pending: int
    not_compared: tuple[str, ...]
    violation: str | None

    def __str__(self) -> str:
        if self.violation is not None:
            return self.violation
        ends = ", ".join(f"{count:,} {end.value}" for end, count in sorted(self.ends.items()))
        pending = f"; {self.pending:,} episodes wait for their update" if self.pending else ""
        taken = f"; not compared: {', '.join(self.not_compared)}" if self.not_compared else ""
        return (
            f"{self.updates:,} updates, {self.groups:,} groups: each sample once and as scheduled "
            f"({ends or 'none'}){pending}{taken}"
        )


def check_run(path: Path) -> CheckedRun:
    """Hold the ledger of a run against its recipe, its journal and its checkpoints. Writes nothing.

    Raises:
        UserError: it is no run's directory, is half-written or of another version, or is being written.
    """
    run = _run_at(path)
    History.read(run).check("check")
    check_alone(run.path, "check")
    schedule = Schedule.of(run)
    updates = read_ledger(run.ledger)
    with _facts(run) as facts:
        accounts, draws = Accounts(schedule, facts), Draws(schedule, facts)
        pending, violation = 0, None
        try:
            progress = _checkpoints(run)
            for update in updates:
                accounts.take(update)
                draws.take(update)
                _agrees(accounts, progress.get(update.number))
            pending = accounts.finish()
            _reaches(run, accounts, max(progress, default=0))
        except Violation as found:
            violation = str(found)
            if facts.damaged_line is not None and "damaged" not in violation:
                violation += f"; damaged in the journal: {facts.damaged_line}"
    return CheckedRun(
        accounts.updates,
        len(accounts.groups),
        dict(accounts.ends),
        pending,
        _not_compared(schedule, run),
        violation,
    )


@contextmanager
def _facts(run: RunDirectory) -> Iterator[Facts]:
    try:
        facts = Facts(run.journal)
    except OSError as error:
        raise DataError(
            f"{error.filename or run.journal}: {error.strerror}, expected the files of a journal, two for "
            "each process; restore them as the run wrote them"
        ) from error
    with closing(facts):
        yield facts


def _run_at(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    for needed, what in (
        (path, "a run's directory"),
        (run.recipe, "the recipe of a run"),
        (run.ledger, "the ledger of a run, which begins with its first finished update"),
        (run.journal, "the journal of a run"),
    ):
        if not needed.exists():
            raise DataError(f"{needed}: there is no such file, expected {what}; name a run's directory")
    return run


def _checkpoints(run: RunDirectory) -> dict[int, Path]:
    """The complete checkpoints by their updates, each with a ledger that begins as it did then."""
    found = {step_of(path): path for path in complete_checkpoints(run.checkpoints)}
    for step, checkpoint in sorted(found.items()):
        try:
            size = Ledger.committed(run.ledger, checkpoint)
        except (DataError, ModelError) as error:
            raise Violation(str(error)) from error
        lines = _lines(run.ledger, size)
        if lines != step + 1:
            raise Violation(
                f"{checkpoint.name} belongs to {lines - 1} updates of the ledger, expected {step}"
            )
    return found


def _lines(path: Path, size: int) -> int:
    lines = 0
    with path.open("rb") as file:
        while size and (piece := file.read(min(size, _PIECE))):
            lines += piece.count(b"\n")
            size -= len(piece)
    return lines


def _agrees(accounts: Accounts, checkpoint: Path | None) -> None:
    """An asynchronous checkpoint goes on behind exactly the groups that the ledger has by then."""
    if checkpoint is None or not (checkpoint / "groups.json").exists():
        return
    behind = GroupProgress().restore(checkpoint)
    if different := sorted(behind ^ accounts.groups):
        where = "the ledger" if different[0] in behind else checkpoint.name
        raise Violation(f"{checkpoint.name}: group {different[0]} has ended, but {where} does not have it")


def _reaches(run: RunDirectory, accounts: Accounts, saved: int) -> None:
    finished = History.read(run).finished_at
    for step, what in ((saved, f"checkpoint-{saved} is there"), (finished or 0, "the run has finished")):
        if accounts.updates < step:
            raise Violation(f"the ledger ends with update {accounts.updates}, but {what} with {step} updates")


def _not_compared(schedule: Schedule, run: RunDirectory) -> tuple[str, ...]:
    found = []
    if (why := not_drawn_again(schedule)) is not None:
        found.append(f"which tasks the curriculum drew ({why})")
    if schedule.rule is None:
        found.append("advantages (by these grpo settings they depend on more than their group)")
    if older := without_checksums(run.journal):
        found.append(f"the texts of {len(older)} journal files (an earlier version wrote them)")
    return tuple(found)
