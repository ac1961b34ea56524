"""Training from a recipe: data, model, sandboxes and TRL put together, evaluated and exported.

Every process of `accelerate launch` runs this whole function: each rolls out its own groups in its own
sandboxes; TRL averages the gradients.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.display import Display, Silent
from sandbox_rl.errors import InfraFault, NothingTrained, StopAsked
from sandbox_rl.evaluation.results import Results
from sandbox_rl.model_builders import settled
from sandbox_rl.outputs import check_place
from sandbox_rl.runs.async_training import async_trainer
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.evaluations import measure_held_out, measure_suite
from sandbox_rl.runs.history import card_lines, known_results, write_results
from sandbox_rl.runs.plan import RunPlan
from sandbox_rl.runs.resume import Earlier
from sandbox_rl.runs.session import Session, training_session
from sandbox_rl.runs.sync_training import sync_trainer
from sandbox_rl.runs.watching import purge_replayed
from sandbox_rl.training.agreement import LONGEST_WAIT_S, join, of_first, together
from sandbox_rl.training.base_trainer import SandboxTrainer
from sandbox_rl.training.callbacks import AfterSteps
from sandbox_rl.training.export import export_model, whole_weights
from sandbox_rl.training.models import compute_dtype
from sandbox_rl.training.stopping import Owner
from sandbox_rl.types import Task

LOOKED_AT = 64
SHORT = 160
"""Tasks among which an example is sought, and characters that it may have."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where everything lies, and what was measured on held-out tasks.

    Args:
        example: a short task without files, as the model can be asked; None where there is none.
    """

    run: Path
    export: Path | None
    before: Results | None
    after: Results | None
    steps: int
    interrupted: bool
    finished_before: bool = False
    example: Task | None = None


def train(
    recipe: Recipe,
    *,
    base_dir: Path,
    resume: str | None = None,
    display: Display | None = None,
    owner: Owner | None = None,
) -> TrainResult:
    """As `api.train`, which says the rest; see `RunDirectory` for what is left behind.

    Args:
        resume: a directory, a name below the recipe's output directory, or "" for the newest run of the
            recipe's name. A run that is finished stays so.
        owner: who has this process for the run alone; None where something else lives on after it.

    Raises:
        InfraFault: every episode of a step, or more than `reward.max_fault_share` of the last ones, failed on
            our side, or the policy's server is gone permanently.
        EndedNow: Ctrl-C came twice.
    """
    wait_s = recipe.grpo.get("ddp_timeout", LONGEST_WAIT_S)
    state = join(wait_s if isinstance(wait_s, int | float) else LONGEST_WAIT_S)  # TRL refuses the others
    display = display if display is not None and state.is_main_process else Silent()
    with together():
        check_place(Path(recipe.output_dir), "output_dir")
        recipe = settled(recipe)
        earlier = None if resume is None else Earlier.of(recipe, resume)
        done = None if earlier is None else earlier.finished(recipe)
    if earlier is not None and done is not None:
        return _as_it_was(earlier.run, done)
    for checkpoint, damage in () if earlier is None else earlier.damaged.items():
        display.say(f"{checkpoint} is damaged and set aside: {damage}")
    with together():
        # Wrong fields show before a warm-up takes minutes, and nothing is written before all is checked.
        plan = RunPlan.of(recipe, base_dir=base_dir, earlier=earlier)
    with training_session(plan, state=state, display=display, owner=owner) as session:
        make = async_trainer if recipe.mode == "async" else sync_trainer
        with make(session) as trainer:
            before = _train(session, trainer)
        run, steps = session.records.run, int(trainer.state.global_step)
        _stop_on_faults(session)
        after = None
        if not session.finish.stopped:
            _require_learning(trainer, run)
            with _stoppable(session):
                after = _measure_after(session, trainer, before)
        if session.finish.stopped:
            if state.is_main_process:
                session.records.history.with_event("stopped", steps)
            return TrainResult(run.path, None, before, None, steps, interrupted=True)
    _export(session, trainer, before, after)
    return TrainResult(run.path, run.export, before, after, steps, interrupted=False, example=_example(plan))


def _train(session: Session, trainer: SandboxTrainer) -> Results | None:
    """Evaluate and train; returns what was measured before the first update."""
    plan, suite, run = session.plan, session.plan.suite, session.records.run
    every = plan.recipe.evaluation.every_steps
    if every:
        trainer.add_callback(
            AfterSteps(every, lambda step: measure_held_out(session, trainer, f"after step {step}"))
        )
    schedule = plan.recipe.evaluation.suite
    if suite is not None and schedule is not None:
        trainer.add_callback(
            AfterSteps(schedule.every_steps, lambda _: measure_suite(session, trainer, suite))
        )
    before = known_results(run).get("before") if plan.earlier is not None else None
    if plan.earlier is not None:
        purge_replayed(trainer, plan.earlier.step)
    with _stoppable(session):
        if before is None and plan.checkpoint is None:
            before = measure_held_out(session, trainer, "before training")
            of_first(lambda: write_results(run, {"before": before, "after": None}))
            _stop_on_faults(session)
        try:
            trainer.train(resume_from_checkpoint=None if plan.checkpoint is None else str(plan.checkpoint))
        except InfraFault as fault:
            if fault.agreed or session.state.num_processes == 1:
                trainer.keep_last_update()
            raise
    if session.finish.stopped:
        trainer.keep_last_update()
    return before


def _example(plan: RunPlan) -> Task | None:
    tasks = chain(islice(plan.held_out_tasks, LOOKED_AT), islice(plan.train_tasks, LOOKED_AT))
    fit = (task for task in tasks if not task.files and len(task.prompt) <= SHORT)
    return next((task for task in fit if task.prompt.isprintable()), None)


@contextmanager
def _stoppable(session: Session) -> Iterator[None]:
    """What gives up its episodes when the run is asked to stop; it does so on all processes or on none."""
    try:
        yield
    except StopAsked:
        session.finish.agree()


def _measure_after(session: Session, trainer: SandboxTrainer, before: Results | None) -> Results | None:
    """What the run has come to; `results.json` and the suite's directory are written."""
    after = measure_held_out(session, trainer, "after training")
    if session.plan.suite is not None:
        measure_suite(session, trainer, session.plan.suite)
    of_first(lambda: write_results(session.records.run, {"before": before, "after": after}))
    _stop_on_faults(session)
    return after


def _require_learning(trainer: SandboxTrainer, run: RunDirectory) -> None:
    """A run that trained on nothing is no result, whatever it would look like."""
    assert trainer.audit is not None, "both trainers of a run have one"
    shares = trainer.audit.shares
    if (became := shares.nothing_trained()) is not None:
        raise NothingTrained(
            f"{run.path}: none of {shares.steps} steps trained on anything: {became}; nothing is exported, "
            "see alarms.jsonl and samples/* in metrics.jsonl there"
        )


def _stop_on_faults(session: Session) -> None:
    """End the run on all processes where one of them has seen too many episodes that could not be judged.

    Raises:
        InfraFault: with the commonest cause.
    """
    with together():
        if cause := session.faults.cause():
            raise InfraFault(f"{session.records.run.path}: {cause}; fix it and go on with --resume")


def _as_it_was(run: RunDirectory, steps: int) -> TrainResult:
    found = known_results(run)
    export = run.export if run.export.is_dir() else None
    return TrainResult(
        run.path,
        export,
        found.get("before"),
        found.get("after"),
        steps,
        interrupted=False,
        finished_before=True,
    )


def _export(session: Session, trainer: SandboxTrainer, before: Results | None, after: Results | None) -> None:
    """Write the model and close the run's history; all processes take part in gathering the weights."""
    recipe, run, state = session.plan.recipe, session.records.run, session.state
    model = trainer.accelerator.unwrap_model(trainer.model)
    dtype = compute_dtype(recipe.model)
    weights = whole_weights(model, dtype=dtype, keep=state.is_main_process)
    with together():
        if not state.is_main_process:
            return
        # The run's directory is ours: what an earlier start of the same run exported is replaced.
        shutil.rmtree(run.export, ignore_errors=True)
        export_model(
            model,
            session.model.tokenizer,
            run.export,
            ends=session.model.chat.ends,
            dtype=dtype,
            recipe=resolved(recipe),
            base_model=recipe.model.path,
            datasets=[source.label for source in recipe.data.sources],
            results=card_lines({"before": before, "after": after}),
            weights=weights,
        )
        session.records.history.with_event("finished", int(trainer.state.global_step))
