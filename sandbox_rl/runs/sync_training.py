"""Synchronous training: rollouts and updates take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PrinterCallback, set_seed

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.audit.progress import ProgressAudit
from sandbox_rl.audit.run import RunAudit
from sandbox_rl.display import Progress
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.observer import EachRollout
from sandbox_rl.rollout.over_sampling import OverSampling
from sandbox_rl.runs.session import Session
from sandbox_rl.runs.watching import adapters_of, publication_probe, saved_parts, start_audit, watchers
from sandbox_rl.training.callbacks import StopOnFaults, keep_going
from sandbox_rl.training.checkpoints import step_of
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.estimator import advantage_rule
from sandbox_rl.training.generations import GenerationLedger, Generations, StopAtBorders
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from sandbox_rl.training.views import SyncArgs
from sandbox_rl.types import Rollout


@contextmanager
def sync_trainer(session: Session) -> Iterator[SandboxGRPOTrainer]:
    """A trainer that rolls out, updates, and rolls out again; shows its episodes while open."""
    plan, recipe = session.plan, session.plan.recipe
    args = cast(SyncArgs, training_arguments(recipe, session.records.run.checkpoints))
    generations = Generations.of(args)
    if args.max_steps <= 0:
        args.max_steps = generations.steps_for(args.num_train_epochs * len(plan.train_tasks))
    curriculum, over_sampling = _curriculum(session), _over_sampling(session)
    records = session.records
    saved = [part.save for part in (curriculum, over_sampling) if part is not None]
    ledger = GenerationLedger(generations, records.ledger)
    groups = generations.count(args.max_steps) * generations.groups
    with _bar(session, args, generations) as bar:
        audit = start_audit(
            session,
            masks_truncated=bool(args.mask_truncated_completions),
            advantages=advantage_rule(recipe.estimator, args),
        )
        set_seed(args.seed)  # adapters begin alike, whatever was drawn before
        trainer = SandboxGRPOTrainer(
            model=session.policy.model,
            args=args,
            reward_funcs=outcome_reward,
            rollout_func=_rollouts(session, args, audit, bar, ledger, curriculum, over_sampling),
            # As many prompts as a run has groups: TRL makes one pass. `GroupRollouts` decides on the tasks.
            train_dataset=Dataset.from_dict({"prompt": [str(group) for group in range(groups)]}),
            processing_class=session.model.tokenizer,
            peft_config=adapters_of(recipe.model.lora),
            weights=session.policy.weights,
            micro_batch_tokens=recipe.update.micro_batch_tokens,
            share_prefixes=recipe.update.share_prefixes,
            audit=audit,
            probe=publication_probe(session, audit),
            ledger=ledger,
            tokens=records.tokens,
            saved=[*saved, *saved_parts(session, audit)],
            callbacks=[
                StopOnFaults(session.faults, session.finish),
                session.finish,
                *watchers(session),
                ProgressAudit(audit.alarms),
                StopAtBorders(generations, len(plan.train_tasks)),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        keep_going(trainer.callback_handler.callbacks)
        yield trainer


def _rollouts(
    session: Session,
    args: SyncArgs,
    audit: RunAudit,
    bar: Progress,
    ledger: GenerationLedger,
    curriculum: Curriculum | None,
    over_sampling: OverSampling | None,
) -> GroupRollouts:
    """TRL's `rollout_func`."""

    def ended(_: EpisodeRequest, rollout: Rollout) -> None:
        bar.advance(rollout.reward.value)
        session.faults.add(rollout)
        audit.faults.add(rollout)

    return GroupRollouts(
        session.engine,
        session.loop,
        {task.id: task for task in session.plan.train_tasks},
        estimator=session.plan.recipe.estimator,
        seed=session.plan.recipe.seed,
        eos_id=session.model.chat.ends.written,
        rank=session.state.process_index,
        world=session.state.num_processes,
        shuffle=args.shuffle_dataset,
        again=session.records.history.again,
        finished=session.records.finished,
        curriculum=curriculum,
        over_sampling=over_sampling,
        journal=session.records.journal,
        ledger=ledger,
        observer=EachRollout(ended),
        audit=audit.samples,
    )


def _curriculum(session: Session) -> Curriculum | None:
    """As it was at the checkpoint; None where tasks come in uniform passes."""
    plan, state = session.plan, session.state
    if not plan.recipe.curriculum.active:
        return None
    curriculum = Curriculum(
        {task.id: task.domain for task in plan.train_tasks},
        plan.recipe.curriculum,
        seed=plan.recipe.seed,
        rank=state.process_index,
        world=state.num_processes,
        share=gather_object,
    )
    if plan.checkpoint is not None:
        curriculum.restore(plan.checkpoint)
    return curriculum


def _over_sampling(session: Session) -> OverSampling | None:
    """With the groups that waited at the checkpoint; None where each step waits for all of its groups."""
    plan, state = session.plan, session.state
    if not (extra := plan.recipe.rollout.over_sample):
        return None
    over_sampling = OverSampling(
        extra, rank=state.process_index, world=state.num_processes, share=gather_object
    )
    if plan.checkpoint is not None:
        over_sampling.restore(plan.checkpoint)
    return over_sampling


def _bar(session: Session, args: SyncArgs, generations: Generations) -> AbstractContextManager[Progress]:
    """Of the episodes that this process rolls out."""

    def episodes(steps: int) -> int:
        return int(generations.count(steps) * args.generation_batch_size // session.state.num_processes)

    checkpoint = session.plan.checkpoint
    done = 0 if checkpoint is None else episodes(step_of(checkpoint))
    return session.display.progress("Training", episodes(args.max_steps), done=done)
