"""Everything a training run stands on, put together from a recipe and taken down again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sandbox_rl.audit.faults import FaultWatch
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.commands.held_out import HeldOut
from sandbox_rl.commands.parts import build_chat, build_engine, build_policy
from sandbox_rl.commands.served import ServedPolicy, serve
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.journal import Journal
from sandbox_rl.policies.base import Policy
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.preflight.check import check_prompts, check_rewards
from sandbox_rl.rollout import RolloutEngine
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.runs.history import History
from sandbox_rl.runs.machine import machine_facts
from sandbox_rl.runs.resume import Earlier, begin, sizes_of
from sandbox_rl.runs.starting_point import starting_point
from sandbox_rl.tasks.load import TaskSet, load_tasks
from sandbox_rl.training.agreement import together
from sandbox_rl.training.callbacks import CountUpdates, FinishOnSignal
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.grpo import sampling_of
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import (
    compute_dtype,
    configured_context,
    end_turns_with,
    generation_ends,
    load_config,
    load_tokenizer,
    load_trained,
)
from sandbox_rl.training.sampler_check import check_rope
from sandbox_rl.training.tree_check import check_tree_config

__all__ = ["Session", "training_session"]


@dataclass(frozen=True, slots=True)
class Session:
    """What both ways of training use.

    Args:
        model_settings: the recipe's model, or the warm-up's result.
        model: loaded; None where the trainer loads it by itself.
        earlier: what this start goes on with.
        history: of the run, this start included.
        served: where the policy is sampled by servers.
        longest_prompt, context: in tokens.
        updates, finish: callbacks that the trainer must get.
        faults: is told of every episode of this process.
    """

    recipe: Recipe
    base_dir: Path
    earlier: Earlier | None
    history: History
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
    faults: FaultWatch


@contextmanager
def training_session(
    recipe: Recipe,
    *,
    base_dir: Path,
    earlier: Earlier | None,
    train_tasks: TaskSet,
    args: Any,
    state: PartialState,
    display: Display,
) -> Iterator[Session]:
    """Start sandboxes, scorers, policy and server, and open the run's directory.

    Raises:
        UserError: something in the recipe, the data, the model or the machine.
    """
    held_out_tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
    with together():  # an endpoint can be out of reach of one process
        notes = asyncio.run(check_rewards(recipe, base_dir, train_tasks))
    for note in notes:
        display.say(note)
    model_settings = starting_point(recipe, base_dir=base_dir, state=state, display=display)
    tokenizer = load_tokenizer(model_settings)
    chat = build_chat(recipe, tokenizer, generation_ends(model_settings))
    context = configured_context(model_settings)
    longest_prompt = check_prompts(recipe, base_dir, chat, train_tasks, context=context)
    longest = min(context, longest_prompt + recipe.episode.max_tokens)
    config = load_config(model_settings)
    check_rope(config, longest=longest, path=model_settings.path)
    if recipe.mode == "async":
        check_tree_config(
            config,
            path=model_settings.path,
            cuda=torch.cuda.is_available(),
            trust_remote_code=model_settings.trust_remote_code,
        )
    updates, finish, lease = CountUpdates(), FinishOnSignal(), ModelLease()
    faults = FaultWatch(recipe.reward.max_fault_share)
    with ExitStack() as stack:
        loop = stack.enter_context(LoopThread(lease))
        served: ServedPolicy | None = None
        model: PreTrainedModel | None = None
        policy: Policy
        if isinstance(recipe.policy, TransformersSettings):
            model = load_trained(model_settings)
            policy = build_policy(
                recipe.policy,
                model,
                tokenizer,
                chat,
                weight_version=lambda: updates.value,
                lease=lease,
                compute=compute_dtype(model_settings),
            )
        else:
            served = serve(
                recipe,
                model=model_settings.path,
                dtype=model_settings.dtype,
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
                model = load_trained(model_settings)  # while the server starts
        if model is not None:
            end_turns_with(model, chat.ends)
        engine = build_engine(recipe, base_dir=base_dir, policy=policy, chat=chat, sampling=sampling_of(args))
        stack.enter_context(loop.entered(engine))
        history = _begin(recipe, state, earlier, train_tasks, args)
        run = history.run
        if served is not None:
            served.keep_log(run.path / "vllm.log")
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "logs")
        journal = stack.enter_context(Journal(run.episodes, repair=state.is_main_process))
        state.wait_for_everyone()  # nobody writes before the first process has repaired the journal
        stack.enter_context(finish.installed())
        if state.is_main_process:
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
            again=history.again,
            on_rollout=faults.add,
        )
        yield Session(
            recipe=recipe,
            base_dir=base_dir,
            earlier=earlier,
            history=history,
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
            faults=faults,
        )


def _begin(
    recipe: Recipe, state: PartialState, earlier: Earlier | None, tasks: TaskSet, args: Any
) -> History:
    """The run's directory and history, the same on all processes; the first one makes and writes them."""
    found: list[Any] = [None]
    with together():
        if state.is_main_process:
            run = RunDirectory.new(Path(recipe.output_dir), recipe.name) if earlier is None else earlier.run
            found = [
                begin(
                    run,
                    earlier,
                    recipe,
                    tasks=tasks,
                    sizes=sizes_of(args),
                    steps=args.max_steps,
                    processes=state.num_processes,
                )
            ]
    broadcast_object_list(found)
    history: History = found[0]
    return history
