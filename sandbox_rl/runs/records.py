"""What a run writes while it goes on: its directory, its history and its journal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from sandbox_rl.journal import Journal
from sandbox_rl.journal.trained import DIRECTORY, TrainedTokens
from sandbox_rl.ledger import Ledger
from sandbox_rl.lock import alone
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.runs.leftovers import Leftovers
from sandbox_rl.runs.plan import RunPlan
from sandbox_rl.runs.resume import begin, sizes_of
from sandbox_rl.training.agreement import any_of, of_first
from sandbox_rl.training.checkpoints import prune
from sandbox_rl.training.reuse import FinishedEpisodes
from sandbox_rl.training.trained_tokens import TokenRecorder


@dataclass(frozen=True, slots=True)
class Records:
    """Where a run writes.

    Args:
        history: this start included.
        journal: of this process's episodes.
        ledger: on the main process; None elsewhere.
        finished: episodes of earlier starts that are not sampled again.
        tokens: what updates make of this process's tokens; None where that is known already.
    """

    run: RunDirectory
    history: History
    journal: Journal
    ledger: Ledger | None
    finished: FinishedEpisodes
    tokens: TokenRecorder | None


@contextmanager
def open_records(plan: RunPlan, state: PartialState) -> Iterator[Records]:
    """Make the run's directory, or bring that of an earlier start to where training begins.

    The first process does it, the others wait.
    """
    with ExitStack() as stack:
        history, left = _begin(plan, state, stack)
        finished, replaced = left.finished, list(left.replaced)
        if any_of(not finished.readable()):  # this machine has not the files that the first process has
            replaced += [place.id for place in finished.places.values()]
            finished = replace(finished, places={})
        run = history.run
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "logs")
        start = history.starts - 1  # the same on all processes, however many there were before
        journal = stack.enter_context(Journal(run.journal, start=start, process=state.process_index))
        if replaced and state.is_main_process:
            journal.replaced(replaced)
        ledger = Ledger(run.ledger) if state.is_main_process else None
        tokens = TrainedTokens(run.path / DIRECTORY, start=start, process=state.process_index)
        yield Records(run, history, journal, ledger, finished, TokenRecorder(tokens))


def _begin(plan: RunPlan, state: PartialState, stack: ExitStack) -> tuple[History, Leftovers]:
    """What the first process has found and made; `stack` keeps others away."""
    recipe, earlier = plan.recipe, plan.earlier

    def begun() -> tuple[History, Leftovers]:
        run = RunDirectory.new(Path(recipe.output_dir), recipe.name) if earlier is None else earlier.run
        stack.enter_context(alone(run.path))
        found = begin(
            run,
            earlier,
            recipe,
            tasks=plan.train_tasks,
            sizes=sizes_of(recipe, plan.args),
            prompts=plan.prompts,
            steps=plan.args.max_steps,
            processes=state.num_processes,
        )
        prune(run.checkpoints, plan.args.save_total_limit)  # a kill may have come before that
        return found

    return of_first(begun)
