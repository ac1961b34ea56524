"""Training from a recipe: data, model, sandboxes and TRL put together, evaluated and exported.

Every process of `accelerate launch` runs this whole function: each rolls out its own groups in its own
sandboxes with its own copy of the model; TRL averages the gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback

from sandbox_rl.commands.callbacks import AfterSteps, CountUpdates, FinishOnSignal, LogMetrics
from sandbox_rl.commands.check import GOLD_SAMPLE, check_gold, check_prompts
from sandbox_rl.commands.display import Display, Silent
from sandbox_rl.commands.facts import machine_facts
from sandbox_rl.commands.held_out import HeldOut
from sandbox_rl.commands.labels import data_labels, result_lines
from sandbox_rl.commands.parts import build_chat, build_engine, build_policy, grpo_arguments
from sandbox_rl.commands.results import known_result, log_evaluation, write_results
from sandbox_rl.commands.run_dir import RunDirectory, check_output_dir, write_atomically
from sandbox_rl.commands.served import ServedPolicy, serve
from sandbox_rl.commands.starting_point import starting_point
from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.evaluation import Evaluation
from sandbox_rl.journal import Journal
from sandbox_rl.policies.base import Policy
from sandbox_rl.policies.config import TransformersSettings, VLLMSettings
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.checkpoints import CheckpointManifest, last_complete
from sandbox_rl.training.config import LoraSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.export import export_model
from sandbox_rl.training.grpo import sampling_of
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import configured_context, load_model, load_tokenizer
from sandbox_rl.training.trainer import GroupRollouts, SandboxGRPOTrainer, outcome_reward
from sandbox_rl.types import Task

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where everything lies, and what was measured on held-out tasks."""

    run: Path
    export: Path | None
    before: Evaluation | None
    after: Evaluation | None
    steps: int
    interrupted: bool


def train(
    recipe: Recipe, *, base_dir: Path, resume: bool = False, display: Display | None = None
) -> TrainResult:
    """Train the recipe's model; see `RunDirectory` for what is left behind.

    Args:
        base_dir: what relative paths of the recipe are relative to.
        resume: go on from the last complete checkpoint of the newest run of that name.

    Raises:
        UserError: something in the recipe, the data, the model or the machine.
        InfraFault: every episode of a step failed on our side.
    """
    state = PartialState()
    display = display if display is not None and state.is_main_process else Silent()
    check_output_dir(Path(recipe.output_dir))
    train_tasks = load_tasks(recipe.data, split="train", base_dir=base_dir)
    held_out_tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
    curriculum = _curriculum(recipe, train_tasks, state)
    # Wrong fields show before a warm-up takes minutes, and nothing is written before all is checked.
    sampling = sampling_of(grpo_arguments(recipe, Path(recipe.output_dir)))
    model_settings = starting_point(recipe, base_dir=base_dir, state=state, display=display)
    tokenizer = load_tokenizer(model_settings)
    chat = build_chat(recipe, tokenizer)
    context = configured_context(model_settings)
    longest_prompt = check_prompts(recipe, base_dir, chat, train_tasks, context=context)
    updates = CountUpdates()
    finish = FinishOnSignal()
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread())
        served: ServedPolicy | None = None
        if isinstance(recipe.policy, VLLMSettings):
            served = serve(
                recipe,
                model=model_settings.path,
                tokenizer=tokenizer,
                chat=chat,
                longest_prompt=longest_prompt,
                context=context,
                loop=loop,
                state=state,
                display=display,
            )
            stack.callback(served.stop)
        model = load_model(model_settings)  # while the server starts
        policy: Policy
        if isinstance(recipe.policy, TransformersSettings):
            policy = build_policy(recipe.policy, model, tokenizer, chat, weight_version=lambda: updates.value)
        else:
            assert served is not None
            policy = served.policy
        engine = build_engine(recipe, base_dir=base_dir, policy=policy, chat=chat, sampling=sampling)
        stack.enter_context(loop.entered(engine))
        check_gold(loop.run(engine.scoring.check_gold(train_tasks[:GOLD_SAMPLE])))
        run = _run_directory(recipe, state, resume=resume)
        if served is not None:
            served.keep_log(run.path / "vllm.log")
        args = grpo_arguments(recipe, run.checkpoints)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "logs")
        journal = stack.enter_context(Journal(run.episodes, repair=state.is_main_process))
        state.wait_for_everyone()  # nobody writes before the first process has repaired the journal
        stack.enter_context(finish.installed())
        if state.is_main_process:
            write_atomically(run.recipe, resolved(recipe))
            run.write_json("machine.json", machine_facts(engine.backend.info))
        held_out = HeldOut(
            engine,
            loop,
            journal,
            held_out_tasks,
            recipe.evaluation,
            seed=recipe.seed,
            state=state,
            display=display,
        )
        with display.progress("Training", _episodes(args, state)) as bar:
            rollouts = GroupRollouts(
                engine,
                loop,
                {task.id: task for task in train_tasks},
                estimator=recipe.estimator,
                seed=recipe.seed,
                eos_id=tokenizer.eos_token_id,
                rank=state.process_index,
                curriculum=curriculum,
                on_step=lambda step, batch: journal.write_all(batch, phase="train", step=step),
                on_rollout=lambda _, rollout: bar.advance(rollout.reward.value),
            )
            trainer = SandboxGRPOTrainer(
                model=model,
                args=args,
                reward_funcs=outcome_reward,
                rollout_func=rollouts,
                train_dataset=Dataset.from_dict({"prompt": [task.id for task in train_tasks]}),
                processing_class=tokenizer,
                peft_config=_lora(recipe.model.lora),
                weight_sync=None if served is None else served.sync,
                callbacks=[
                    updates,
                    finish,
                    CheckpointManifest(None if curriculum is None else curriculum.save),
                    LogMetrics(run.metrics),
                ],
            )
            trainer.remove_callback(PrinterCallback)

            def measure(label: str, step: int) -> Evaluation | None:
                trainer.sync_policy()
                evaluation = held_out.evaluate(label, step)
                log_evaluation(trainer, evaluation)
                return evaluation

            if recipe.evaluation.every_steps:
                trainer.add_callback(
                    AfterSteps(
                        recipe.evaluation.every_steps, lambda step: measure(f"after step {step}", step)
                    )
                )
            checkpoint = last_complete(run.checkpoints) if resume else None
            if checkpoint is not None and curriculum is not None:
                curriculum.restore(checkpoint)
            before = known_result(run, "before") if resume else None
            if before is None and checkpoint is None:
                before = measure("before training", 0)
                write_results(run, state, before, None)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        steps = int(trainer.state.global_step)
        if finish.received:
            return TrainResult(run.path, None, before, None, steps, interrupted=True)
        after = measure("after training", steps)
        write_results(run, state, before, after)
    if state.is_main_process:
        export_model(
            trainer.accelerator.unwrap_model(trainer.model),
            tokenizer,
            run.export,
            recipe=resolved(recipe),
            base_model=recipe.model.path,
            datasets=data_labels(recipe),
            results=result_lines(
                {
                    when: (e.accuracy, e.half_width)
                    for when, e in (("before", before), ("after", after))
                    if e is not None
                }
            ),
        )
    state.wait_for_everyone()
    return TrainResult(run.path, run.export, before, after, steps, interrupted=False)


def _curriculum(recipe: Recipe, tasks: Iterable[Task], state: PartialState) -> Curriculum | None:
    """None where the recipe leaves everything to the trainer's own order."""
    if not recipe.curriculum.active:
        return None
    return Curriculum(
        {task.id: task.domain for task in tasks},
        recipe.curriculum,
        seed=recipe.seed,
        rank=state.process_index,
        world=state.num_processes,
        share=gather_object,
    )


def _run_directory(recipe: Recipe, state: PartialState, *, resume: bool) -> RunDirectory:
    """The same directory on all processes; the first one makes it."""
    found: list[Any] = [None]
    if state.is_main_process:
        open_directory = RunDirectory.latest if resume else RunDirectory.new
        found = [open_directory(Path(recipe.output_dir), recipe.name)]
    broadcast_object_list(found)
    run: RunDirectory = found[0]
    return run


def _episodes(args: Any, state: PartialState) -> int:
    """Episodes that this process will roll out, 0 if the number of steps is not known beforehand."""
    generations = args.max_steps * args.gradient_accumulation_steps
    generations //= args.steps_per_generation * args.num_iterations
    episodes: int = generations * args.generation_batch_size // state.num_processes
    return max(0, episodes)


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
