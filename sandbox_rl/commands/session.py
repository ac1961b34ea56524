"""Everything a training run stands on, put together from a recipe and taken down again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.commands.callbacks import CountUpdates, FinishOnSignal
from sandbox_rl.commands.check import check_gold, check_prompts
from sandbox_rl.commands.display import Display
from sandbox_rl.commands.facts import machine_facts
from sandbox_rl.commands.held_out import HeldOut
from sandbox_rl.commands.parts import build_chat, build_engine, build_policy
from sandbox_rl.commands.run_dir import RunDirectory, write_atomically
from sandbox_rl.commands.served import ServedPolicy, serve
from sandbox_rl.commands.starting_point import starting_point
from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.episode import SamplingSettings
from sandbox_rl.journal import Journal
from sandbox_rl.policies.base import Policy
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.rollout import RolloutEngine
from sandbox_rl.tasks.load import TaskSet, load_tasks
from sandbox_rl.training.agreement import together
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import (
    configured_context,
    end_turns_with,
    generation_ends,
    load_model,
    load_tokenizer,
)

__all__ = ["Session", "training_session"]


@dataclass(frozen=True, slots=True)
class Session:
    """What both ways of training use.

    Args:
        model_settings: the recipe's model, or the warm-up's result.
        model: loaded; None where the trainer loads it by itself.
        served: where the policy is sampled by servers.
        longest_prompt, context: in tokens.
        updates, finish: callbacks that the trainer must get.
    """

    recipe: Recipe
    base_dir: Path
    resume: bool
    state: PartialState
    display: Display
    train_tasks: TaskSet
    model_settings: ModelSettings
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    model: PreTrainedModel | None
    served: ServedPolicy | None
    longest_prompt: int
    context: int
    loop: LoopThread
    engine: RolloutEngine
    run: RunDirectory
    journal: Journal
    held_out: HeldOut
    updates: CountUpdates
    finish: FinishOnSignal


@contextmanager
def training_session(
    recipe: Recipe,
    *,
    base_dir: Path,
    resume: bool,
    train_tasks: TaskSet,
    sampling: SamplingSettings,
    state: PartialState,
    display: Display,
) -> Iterator[Session]:
    """Start sandboxes, scorers, policy and server, and open the run's directory.

    Raises:
        UserError: something in the recipe, the data, the model or the machine.
    """
    held_out_tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
    model_settings = starting_point(recipe, base_dir=base_dir, state=state, display=display)
    tokenizer = load_tokenizer(model_settings)
    chat = build_chat(recipe, tokenizer, generation_ends(model_settings))
    context = configured_context(model_settings)
    longest_prompt = check_prompts(recipe, base_dir, chat, train_tasks, context=context)
    updates, finish, lease = CountUpdates(), FinishOnSignal(), ModelLease()
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread(lease))
        served: ServedPolicy | None = None
        model: PreTrainedModel | None = None
        policy: Policy
        if isinstance(recipe.policy, TransformersSettings):
            model = load_model(model_settings)
            policy = build_policy(
                recipe.policy, model, tokenizer, chat, weight_version=lambda: updates.value, lease=lease
            )
        else:
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
            policy = served.policy
            if recipe.mode == "sync":
                model = load_model(model_settings)  # while the server starts
        if model is not None:
            end_turns_with(model, chat.ends)
        engine = build_engine(recipe, base_dir=base_dir, policy=policy, chat=chat, sampling=sampling)
        stack.enter_context(loop.entered(engine))
        golds = loop.run(check_gold(recipe, train_tasks, engine.scoring))
        if golds.as_text:
            display.say(f"gold answers: {golds}")
        run = _run_directory(recipe, state, resume=resume)
        if served is not None:
            served.keep_log(run.path / "vllm.log")
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
        yield Session(
            recipe=recipe,
            base_dir=base_dir,
            resume=resume,
            state=state,
            display=display,
            train_tasks=train_tasks,
            model_settings=model_settings,
            tokenizer=tokenizer,
            chat=chat,
            model=model,
            served=served,
            longest_prompt=longest_prompt,
            context=context,
            loop=loop,
            engine=engine,
            run=run,
            journal=journal,
            held_out=held_out,
            updates=updates,
            finish=finish,
        )


def _run_directory(recipe: Recipe, state: PartialState, *, resume: bool) -> RunDirectory:
    """The same directory on all processes; the first one makes it."""
    found: list[Any] = [None]
    with together():
        if state.is_main_process:
            open_directory = RunDirectory.latest if resume else RunDirectory.new
            found = [open_directory(Path(recipe.output_dir), recipe.name)]
    broadcast_object_list(found)
    run: RunDirectory = found[0]
    return run
