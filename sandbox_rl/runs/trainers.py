"""TRL's trainers on a session: synchronous, where rollouts and updates take turns, or asynchronous."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from sandbox_rl.audit.progress import ProgressAudit
from sandbox_rl.audit.run import RunAudit
from sandbox_rl.commands.parts import async_arguments, grpo_arguments
from sandbox_rl.commands.rollout_loop import RolloutJob, groups_at_once
from sandbox_rl.commands.rollout_process import RolloutProcess
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.rollout import EpisodeRequest
from sandbox_rl.rollout.over_sampling import TailBatches
from sandbox_rl.runs.session import Session
from sandbox_rl.training.asynchronous.config import advantage_of
from sandbox_rl.training.asynchronous.ledger import GroupProgress
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from sandbox_rl.training.callbacks import LogMetrics, ShowSteps, StopOnFaults
from sandbox_rl.training.checkpoints import CheckpointManifest, step_of
from sandbox_rl.training.config import LoraSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.generations import Generations, StopAtBorders
from sandbox_rl.training.group_rollouts import GroupRollouts, outcome_reward
from sandbox_rl.training.grpo import sampling_of
from sandbox_rl.training.models import end_turns_with
from sandbox_rl.training.over_sampling import TailBatchRollouts
from sandbox_rl.training.probe import PublicationProbe
from sandbox_rl.training.trainer import SandboxGRPOTrainer
from sandbox_rl.types import Rollout

__all__ = ["async_trainer", "sync_trainer"]

PROBE_TOKENS = 96
"""Of the prompt that publications are probed with."""


@contextmanager
def sync_trainer(session: Session, checkpoint: Path | None) -> Iterator[SandboxGRPOTrainer]:
    """A trainer that rolls out, updates, and rolls out again; shows its episodes while open.

    Args:
        checkpoint: that training will go on from.
    """
    recipe, state = session.recipe, session.state
    curriculum = None
    if recipe.curriculum.active:
        curriculum = Curriculum(
            {task.id: task.domain for task in session.train_tasks},
            recipe.curriculum,
            seed=recipe.seed,
            rank=state.process_index,
            world=state.num_processes,
            share=gather_object,
        )
        if checkpoint is not None:
            curriculum.restore(checkpoint)
    args = grpo_arguments(recipe, session.run.checkpoints)
    rhythm = Generations.of(args)
    if args.max_steps <= 0:
        args.max_steps = rhythm.steps_for(args.num_train_epochs * len(session.train_tasks))
    done = 0 if checkpoint is None else _episodes(args, step_of(checkpoint), state.num_processes)
    total = _episodes(args, args.max_steps, state.num_processes)
    with session.display.progress("Training", total, done=done) as bar:
        tail = _tail_batches(recipe, state, checkpoint)
        make_rollouts: Any = GroupRollouts
        if tail is not None:
            make_rollouts = partial(TailBatchRollouts, tail=tail, on_cut=_journal(session, "cancelled"))
        audit = _audit(session, masks_truncated=bool(args.mask_truncated_completions))

        def ended(_: EpisodeRequest, rollout: Rollout) -> None:
            bar.advance(rollout.reward.value)
            session.faults.add(rollout)

        rollouts = make_rollouts(
            session.engine,
            session.loop,
            {task.id: task for task in session.train_tasks},
            estimator=recipe.estimator,
            seed=recipe.seed,
            eos_id=session.chat.ends.written,
            rank=state.process_index,
            world=state.num_processes,
            shuffle=args.shuffle_dataset,
            again=session.history.again,
            curriculum=curriculum,
            on_step=_journal(session, "train"),
            on_rollout=ended,
            audit=audit.samples,
        )
        trainer = SandboxGRPOTrainer(
            model=session.model,
            args=args,
            reward_funcs=outcome_reward,
            rollout_func=rollouts,
            train_dataset=_numbers(rhythm.count(args.max_steps) * rhythm.groups),
            processing_class=session.tokenizer,
            peft_config=_lora(recipe.model.lora),
            weight_sync=None if session.served is None else session.served.sync,
            micro_batch_tokens=recipe.update.micro_batch_tokens,
            audit=audit,
            probe=_probe(session, audit),
            callbacks=[
                *_callbacks(session),
                ProgressAudit(audit.alarms),
                CheckpointManifest(
                    next((part.save for part in (curriculum, tail) if part is not None), None)
                ),
                StopAtBorders(rhythm, len(session.train_tasks)),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        yield trainer


@contextmanager
def async_trainer(session: Session, checkpoint: Path | None) -> Iterator[SandboxAsyncTrainer]:
    """A trainer that updates while a process of its own goes on rolling out.

    Args:
        checkpoint: that training will go on from.
    """
    recipe, state = session.recipe, session.state
    assert session.served is not None, "checked with the recipe"
    served = session.served
    args = async_arguments(recipe, session.run.checkpoints, longest=_longest(session))
    at_once = groups_at_once(recipe.rollout.concurrency, args.num_generations)
    progress = GroupProgress()
    worker: RolloutProcess | None = None
    if state.is_main_process:
        if checkpoint is not None:
            progress.restore(checkpoint)
        worker = RolloutProcess(
            RolloutJob(
                recipe=recipe,
                base_dir=session.base_dir,
                model=session.model_settings.path,
                addresses=served.addresses,
                journal=session.run.episodes,
                group_size=args.num_generations,
                advantage=advantage_of(recipe.estimator),
                sampling=sampling_of(args),
                attempt=session.history.starts - 1,
            )
        )
        served.on_version.append(worker.update_model_version)
    done = 0 if checkpoint is None else step_of(checkpoint)
    with session.display.progress("Training", args.max_steps, done=done) as bar:
        audit = _audit(session)
        trainer = SandboxAsyncTrainer(
            model=session.model_settings.path,
            args=args,
            at_once=at_once,
            progress=progress,
            stop=lambda: session.finish.received,
            stopped=session.finish.agree,
            train_dataset=_prompts(session),
            processing_class=session.tokenizer,
            peft_config=_lora(recipe.model.lora),
            rollout_worker=worker,
            weight_transfer=served.publisher,
            audit=audit,
            probe=_probe(session, audit),
            callbacks=[
                *_watchers(session),
                ProgressAudit(audit.alarms),
                ShowSteps(bar),
                CheckpointManifest(progress.save),
            ],
        )
        end_turns_with(trainer.model, session.chat.ends)
        trainer.remove_callback(PrinterCallback)
        try:
            yield trainer
        finally:
            if worker is not None:
                worker.stop()


def _tail_batches(recipe: Recipe, state: PartialState, checkpoint: Path | None) -> TailBatches | None:
    if not recipe.rollout.over_sample:
        return None
    tail = TailBatches(
        recipe.rollout.over_sample, rank=state.process_index, world=state.num_processes, share=gather_object
    )
    if checkpoint is not None:
        tail.restore(checkpoint)
    return tail


def _audit(session: Session, *, masks_truncated: bool = False) -> RunAudit:
    return RunAudit.start(
        session.run.path / "alarms.jsonl",
        total=lambda counts: _total(session.state, counts),
        masks_truncated=masks_truncated,
        mismatch_alarm=session.recipe.policy.mismatch_alarm,
    )


def _probe(session: Session, audit: RunAudit) -> PublicationProbe | None:
    """Fixed tokens, the beginning of a prompt, that servers and trainer are asked about."""
    served = session.served
    if served is None:
        return None
    ids = session.engine.prompt_ids(session.train_tasks[0])[:PROBE_TOKENS]
    asks = session.state.is_main_process
    return PublicationProbe(
        audit.publications, ids, (lambda ids: session.loop.run(served.policy.score(ids))) if asks else None
    )


def _total(state: PartialState, counts: Sequence[float]) -> Sequence[float]:
    """Sums over all processes."""
    if state.num_processes == 1:
        return counts
    return [sum(column) for column in zip(*gather_object([list(counts)]), strict=True)]


def _journal(session: Session, phase: str) -> Callable[[int, Sequence[Rollout]], None]:
    return lambda step, batch: session.journal.write_all(batch, phase=phase, step=step)


def _callbacks(session: Session) -> list[Any]:
    stop = StopOnFaults(session.faults, session.finish)
    return [stop, session.finish, *_watchers(session)]


def _watchers(session: Session) -> list[Any]:
    return [session.updates, LogMetrics(session.run.metrics)]


def _prompts(session: Session) -> Dataset:
    """TRL hands prompts on as they are; ours are task ids."""
    return Dataset.from_dict({"prompt": [task.id for task in session.train_tasks]})


def _numbers(groups: int) -> Dataset:
    """As many prompts as a run has groups: TRL makes one pass. `GroupRollouts` decides on the tasks."""
    return Dataset.from_dict({"prompt": [str(group) for group in range(groups)]})


def _longest(session: Session) -> int:
    """Tokens of the longest episode with its prompt."""
    return min(session.context, session.longest_prompt + session.recipe.episode.max_tokens)


def _episodes(args: Any, steps: int, processes: int) -> int:
    """Episodes that this process rolls out for so many updates."""
    episodes: int = Generations.of(args).count(steps) * args.generation_batch_size // processes
    return episodes


def _lora(settings: LoraSettings | None) -> LoraConfig | None:
    if settings is None:
        return None
    modules = settings.target_modules
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
