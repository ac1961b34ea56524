"""Evaluations within a training run, on the very policy that is being trained, shared among its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from accelerate.utils import gather_object

from sandbox_rl.builders import build_engine
from sandbox_rl.errors import InfraFault
from sandbox_rl.evaluation.directory import EvaluationDirectory
from sandbox_rl.evaluation.plan import EvaluationPlan
from sandbox_rl.evaluation.results import Results, results_of
from sandbox_rl.evaluation.run import EpisodeRow, run_evaluation
from sandbox_rl.journal import Journal
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.runs.directory import set_aside
from sandbox_rl.runs.session import Session
from sandbox_rl.runs.subjects import Subject
from sandbox_rl.training.agreement import of_first, together
from sandbox_rl.training.base_trainer import SandboxTrainer
from sandbox_rl.training.callbacks import for_trackers
from sandbox_rl.types import Rollout


def measure_held_out(session: Session, trainer: SandboxTrainer, when: str) -> Results | None:
    """Evaluate the held-out tasks, with the same seeds each time; None where there are none.

    The episodes go to the run's own journal.

    Args:
        when: for a person, such as "before training".

    Raises:
        InfraFault: every episode of a process failed on our side.
    """
    subject = session.plan.held_out
    if subject is None:
        return None
    trainer.sync_policy()
    step = int(trainer.state.global_step)
    again = f"-r{times}" if (times := session.records.history.again(step)) else ""
    plan = _plan(session, subject, label=f"eval-{step:06d}{again}")
    rows: list[EpisodeRow] = []

    def ended(row: EpisodeRow, rollout: Rollout) -> None:
        rows.append(row)
        session.faults.add(rollout)

    with together():
        journal, engine = session.records.journal, nullcontext(session.engine)
        _run(session, plan, engine, journal, ended, step=step, title=f"Evaluating {when}")
    return _results(session, trainer, plan, rows, "eval")


def measure_suite(session: Session, trainer: SandboxTrainer, subject: Subject) -> Results:
    """Run a suite with the run's sandboxes, chat format and policy; everything else is the suite's.

    Each measurement has a directory of its own, `suites/<name>-<step>`, as `sandbox-rl eval` writes it.
    What fails on our side is counted in the results and ends nothing.
    """
    trainer.sync_policy()
    step, name = int(trainer.state.global_step), subject.settings.name
    title = f"Suite {name}, step {step}"
    output = EvaluationDirectory(session.records.run.path / "suites" / f"{name}-{step:06d}")
    plan = _plan(session, subject)
    rows: list[EpisodeRow] = []
    # A run that was killed and resumed comes here again, with weights of its own.
    of_first(lambda: set_aside(output.path))
    with together(), Journal(output.journal, process=session.state.process_index) as journal:
        engine = _suite_engine(session, subject)
        try:
            _run(session, plan, engine, journal, lambda row, _: rows.append(row), step=step, title=title)
        except InfraFault as error:
            session.display.say(f"{title}: {error}")
    results = _results(session, trainer, plan, rows, f"suite/{name}")
    of_first(lambda: output.write(results))
    session.display.say(f"{title}: {results.headline()}")
    return results


def _plan(session: Session, subject: Subject, label: str = "") -> EvaluationPlan:
    share = (session.state.process_index, session.state.num_processes)
    return subject.plan(session.plan.recipe.model.path, label=label, share=share)


def _run(
    session: Session,
    plan: EvaluationPlan,
    engine: AbstractAsyncContextManager[RolloutEngine],
    journal: Journal,
    on_episode: Callable[[EpisodeRow, Rollout], None],
    *,
    step: int,
    title: str,
) -> None:
    """The episodes of this process."""
    with session.display.progress(title, len(plan.own_requests("sandbox"))) as bar:

        def ended(row: EpisodeRow, rollout: Rollout) -> None:
            bar.advance(row.reward)
            on_episode(row, rollout)

        running = run_evaluation(plan, {"sandbox": engine}, journal, on_episode=ended, step=step)
        session.loop.run_episodes(running)


def _results(
    session: Session, trainer: SandboxTrainer, plan: EvaluationPlan, rows: list[EpisodeRow], prefix: str
) -> Results:
    """The results over all processes, the same on each, and sent to the trackers."""
    everyone: list[EpisodeRow] = gather_object(rows) if session.state.num_processes > 1 else rows
    results = results_of(everyone, plan)
    logs = {f"{prefix}/{name}": value for name, value in results.metrics().items()}
    # TRL's own log() would mix in what training has gathered since its last call.
    trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, for_trackers(logs))
    return results


@asynccontextmanager
async def _suite_engine(session: Session, subject: Subject) -> AsyncIterator[RolloutEngine]:
    """Policy and sandboxes are the run's and stay up; only the scorers are started and ended."""
    engine = build_engine(
        subject.settings,
        base_dir=subject.base_dir,
        agent=session.engine.agent,
        sampling=subject.sampling,
        backend=session.engine.backend,
    )
    async with engine.scoring:
        yield engine
