"""Asynchronous training: updates go on while a process of its own rolls out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, set_seed

from sandbox_rl.audit.progress import ProgressAudit
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.runs.rollouts import build_rollouts
from sandbox_rl.runs.session import Session
from sandbox_rl.runs.watching import adapters_of, publication_probe, saved_parts, start_audit, watchers
from sandbox_rl.training.asynchronous.compositions import FILE as COMPOSITIONS
from sandbox_rl.training.asynchronous.compositions import CompositionLog
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.asynchronous.rollout_loop import RolloutJob, groups_at_once
from sandbox_rl.training.asynchronous.rollout_process import RolloutProcess
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from sandbox_rl.training.callbacks import ShowSteps, StopOnFaults, keep_going
from sandbox_rl.training.checkpoints import step_of
from sandbox_rl.training.estimator import advantage_of
from sandbox_rl.training.groups import advantages
from sandbox_rl.training.grpo import sampling_of
from sandbox_rl.training.models import end_turns_with
from sandbox_rl.training.publication.served import ServedPolicy
from sandbox_rl.training.reuse import recorded_groups


@contextmanager
def async_trainer(session: Session) -> Iterator[SandboxAsyncTrainer]:
    """A trainer that updates while a process of its own goes on rolling out; shows its updates while open."""
    checkpoint, served = session.plan.checkpoint, session.policy.served
    assert served is not None, "checked with the recipe"
    progress, worker, log = GroupProgress(), None, None
    if session.state.is_main_process:
        if checkpoint is not None:
            progress.restore(checkpoint)
        worker = _rollout_process(session, served, session.plan.args.num_generations)
        _reuse(session, progress, worker)
        log = CompositionLog(session.records.run.path / COMPOSITIONS)
    with trainer_of(session, progress, rollout_worker=worker, compositions=log) as trainer:
        try:
            yield trainer
        finally:
            if worker is not None:
                worker.stop()


@contextmanager
def trainer_of(
    session: Session, progress: GroupProgress, *, audited: bool = True, **rollouts: Any
) -> Iterator[SandboxAsyncTrainer]:
    """The trainer of a recipe, wherever its groups come from; shows its updates while open.

    Args:
        progress: the groups so far.
        audited: whether updates are looked at; not those that were when they were composed.
        rollouts: what `SandboxAsyncTrainer` is told of where they come from and what is written of them.
    """
    recipe, checkpoint = session.plan.recipe, session.plan.checkpoint
    ledger, tokens = session.records.ledger, session.records.tokens
    args = training_arguments(recipe, session.records.run.checkpoints, longest=session.model.longest)
    done = 0 if checkpoint is None else step_of(checkpoint)
    with session.display.progress("Training", args.max_steps, done=done) as bar:
        audit = start_audit(
            session,
            advantages=partial(advantages, kind=advantage_of(recipe.estimator)),
            group_size=args.num_generations,
        )
        set_seed(args.seed)  # adapters begin alike, whatever was drawn before
        trainer = SandboxAsyncTrainer(
            model=session.model.settings.path,
            args=args,
            at_once=groups_at_once(recipe.rollout.concurrency, args.num_generations),
            progress=progress,
            ledger=ledger,
            tokens=tokens,
            stop=lambda: bool(session.finish.asked),
            stopped=session.finish.agree,
            # TRL hands prompts on as they are; ours are task ids.
            train_dataset=Dataset.from_dict({"prompt": [task.id for task in session.plan.train_tasks]}),
            processing_class=session.model.tokenizer,
            peft_config=adapters_of(recipe.model.lora),
            weights=session.policy.weights,
            audit=audit if audited else None,
            probe=publication_probe(session, audit),
            saved=saved_parts(session, audit),
            callbacks=[
                StopOnFaults(session.faults, session.finish),  # of evaluations; rollouts stop by themselves
                *watchers(session),
                ProgressAudit(audit.alarms),
                ShowSteps(bar),
            ],
            **rollouts,
        )
        end_turns_with(trainer.model, session.model.chat.ends)
        trainer.remove_callback(PrinterCallback)
        keep_going(trainer.callback_handler.callbacks)
        yield trainer


def _reuse(session: Session, progress: GroupProgress, worker: RolloutProcess) -> None:
    """Groups that an earlier start has sampled arrive at once, with the age that they have."""
    plan, recipe, finished = session.plan, session.plan.recipe, session.records.finished
    step = 0 if plan.checkpoint is None else step_of(plan.checkpoint)
    left = set(finished.groups())
    for oldest, group in recorded_groups(
        finished,
        list(plan.train_tasks),
        seed=recipe.seed,
        size=plan.args.num_generations,
        kind=advantage_of(recipe.estimator),
        leave_out_equal=recipe.curriculum.refill_rounds > 0,
    ):
        progress.admit_again(group.number, step if oldest is None else oldest)
        worker.hand_over(group)
        left.remove(group.number)
    if left:
        session.records.journal.replaced(sorted(finished.of_groups(left)))


def _rollout_process(session: Session, served: ServedPolicy, group_size: int) -> RolloutProcess:
    """Where episodes are sampled; it reads the version where whoever publishes writes it."""
    plan, recipe = session.plan, session.plan.recipe
    build = partial(
        build_rollouts,
        recipe,
        plan.base_dir,
        model=session.model.settings.path,
        addresses=served.addresses,
        sampling=sampling_of(plan.args),
    )
    job = RolloutJob(
        build=build,
        seed=recipe.seed,
        at_once=groups_at_once(recipe.rollout.concurrency, group_size),
        group_size=group_size,
        advantage=advantage_of(recipe.estimator),
        leave_out_equal=recipe.curriculum.refill_rounds > 0,
        max_fault_share=recipe.reward.max_fault_share,
        journal=session.records.run.journal,
        attempt=session.records.history.starts - 1,
    )
    return RolloutProcess(job, served.weights.version)
