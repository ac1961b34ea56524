"""`--dry-run`: everything that can be wrong is found before the first second of training."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from sandbox_rl.builders import build_backend, build_render
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError, SetupError, UserError
from sandbox_rl.model_builders import settled
from sandbox_rl.outputs import check_place
from sandbox_rl.policies.config import TransformersSettings, VLLMSettings
from sandbox_rl.policies.vllm.launch import check_startable
from sandbox_rl.preflight.context import budget_warnings
from sandbox_rl.preflight.estimates import duration_of, host_memory_of, memory_of, sampler_gap
from sandbox_rl.preflight.rewards import check_rewards
from sandbox_rl.runs.division import check_division
from sandbox_rl.runs.launch import cards_that_train, division_of, plan_launch
from sandbox_rl.runs.placement import training_placement
from sandbox_rl.runs.plan import RunModel, RunPlan
from sandbox_rl.runs.starting_point import needs_warmup
from sandbox_rl.sandboxes.base import PlaysEpisodes
from sandbox_rl.tools.text import clean, clip
from sandbox_rl.training.agreement import started_among
from sandbox_rl.training.experts import EXPERTS
from sandbox_rl.training.grpo import sampling_of
from sandbox_rl.training.placement import find_cards
from sandbox_rl.training.views import AsyncArgs, SyncArgs

SHOWN = 3000
"""Characters of a prompt that are shown."""


def dry_run(recipe: Recipe, *, base_dir: Path, display: Display) -> None:
    """Resolve and try everything but training, show one task, and say that all is ready; writes nothing.

    Raises:
        UserError: what is wrong; of several things that do not depend on each other, all are said.
    """
    started_among(os.environ)
    check_place(Path(recipe.output_dir), "output_dir")
    plan = RunPlan.of(settled(recipe), base_dir=base_dir)
    missing: list[UserError] = []
    with _collected(missing):
        _check_plan(plan, display)
    model, scored = None, None
    with _collected(missing):
        model = RunModel.of(plan, plan.recipe.model)
        _check_model(plan, model, display)
    with _collected(missing):
        asyncio.run(_try_sandbox(plan, display))
    with _collected(missing):
        scored = _check_rewards(plan, display)
    if len(missing) == 1:
        raise missing[0]
    for error in missing:
        display.say(f"missing  {' '.join(str(error).split())}")
    if missing:
        raise ConfigError(f"not ready: {len(missing)} things are missing, see above; the first: {missing[0]}")
    assert model is not None, "else it is missing"
    _show_task(plan, model, display)
    display.say(f"{scored}\n\nready: leave --dry-run out to train")


@contextmanager
def _collected(missing: list[UserError]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        missing.append(error)


def _check_rewards(plan: RunPlan, display: Display) -> str:
    """What the gold answer of the task that is shown earns."""
    tasks = plan.train_tasks
    *notes, scored = asyncio.run(check_rewards(plan.recipe, plan.base_dir, tasks, shown=tasks[0]))
    display.say(f"ok  reward: the gold answers of {len(tasks)} tasks can be scored")
    for note in notes:
        display.say(note)
    return scored


def _show_task(plan: RunPlan, model: RunModel, display: Display) -> None:
    """A prompt as the model gets it, and how long prompts are beside its context."""
    task, budget = plan.train_tasks[0], plan.recipe.episode.max_tokens
    ids = model.chat.render_prompt(build_render(plan.recipe, plan.base_dir)(task))
    text = clip(clean(model.tokenizer.decode(ids)), SHOWN)
    display.say(f"\nA task, {task.id}, as the model gets it:\n\n{text.strip()}\n")
    if plan.recipe.model.path == "tiny":
        display.say(f"its prompt: {len(ids)} bytes; the warm-up makes a tokenizer that needs fewer tokens")
        return
    longest = model.longest_prompt
    left = model.context - longest
    display.say(
        f"its prompt: {len(ids)} tokens; the longest: {longest}, which leaves {left} of the context of "
        f"{model.context}; an episode may take {budget} (episode.max_tokens)"
    )


def _check_plan(plan: RunPlan, display: Display) -> None:
    recipe = plan.recipe
    display.say(f"ok  data: {len(plan.train_tasks)} training tasks, {len(plan.held_out_tasks)} held out")
    if plan.suite is not None and recipe.evaluation.suite is not None:
        suite, every = plan.suite, recipe.evaluation.suite.every_steps
        left_out = f"; left out: {', '.join(suite.skipped)}" if suite.skipped else ""
        display.say(f"ok  suite: {suite.settings.name}, {suite.tasks} tasks every {every} updates{left_out}")
    sampling_of(plan.args)
    if recipe.mode == "sync":
        sync = cast(SyncArgs, plan.args)
        display.say(f"ok  grpo: {sync.generation_batch_size} episodes per generation, {sync.loss_type} loss")
    else:
        args = cast(AsyncArgs, plan.args)
        display.say(f"ok  grpo: asynchronous, {args.max_steps} updates, staleness of {args.max_staleness}")
    if recipe.warmup is not None:
        EXPERTS.find(recipe.warmup.expert)
    needs_warmup(recipe)
    if isinstance(recipe.policy, VLLMSettings):
        check_startable(recipe.policy)
        display.say(f"ok  policy: vLLM, {recipe.policy.engine}; its own arguments are checked at its start")


def _check_model(plan: RunPlan, model: RunModel, display: Display) -> None:
    recipe, prompt, context = plan.recipe, model.longest_prompt, model.context
    display.say(f"ok  model: {recipe.model.path}, context of {context} tokens, chat template usable")
    if recipe.model.path != "tiny":
        for warning in budget_warnings(model.chat, recipe.episode, prompt=prompt, context=context):
            display.say(f"warning: {warning}")
    cards = len(find_cards())
    training = cards_that_train(recipe, cards)
    launch = plan_launch(recipe.launch, cards=cards, training=training, environment=os.environ)
    division = division_of(launch)
    check_division(recipe, division)
    memory = memory_of(
        recipe,
        plan.args,
        model.config,
        prompt=prompt,
        context=context,
        shards=division.shards,
        offloaded=division.way.offloads,
    )
    display.say(f"ok  memory: {memory}")
    if cards:
        host = host_memory_of(
            recipe,
            model.config,
            readers=division.readers,
            as_stored=division.way.name == "DEEPSPEED",
            offloaded=division.way.offloads * division.ranks / division.processes,
        )
        display.say(f"ok  host memory: {host}")
    if launch is not None:
        display.say(f"ok  launch: {launch}{_episodes(plan, division.processes)}")
    placement = training_placement(recipe, plan.args, model, launch=launch)
    if placement is not None:
        display.say(f"ok  placement: {placement}")
    duration = duration_of(recipe, plan.args, model.config, prompt=prompt, tasks=len(plan.train_tasks))
    display.say(f"ok  duration: {duration or 'not estimated for so small a model'}")
    if isinstance(recipe.policy, TransformersSettings):
        gap = sampler_gap(recipe.model, recipe.policy, model.tokenizer)
        display.say(f"ok  sampler: {gap:.4f} nats per token from the trainer")


def _episodes(plan: RunPlan, processes: int) -> str:
    """Of an update, where the processes decide it: a recipe says how many are each one's."""
    if plan.recipe.mode == "async":
        return ""
    args = cast(SyncArgs, plan.args)
    each = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return f"; {each * processes} episodes an update, {each} of each process"


async def _try_sandbox(plan: RunPlan, display: Display) -> None:
    async with build_backend(plan.recipe) as backend:
        if isinstance(backend, PlaysEpisodes):
            display.say("ok  sandbox: recorded; no command runs at all")
            return
        async with backend.sandbox(plan.train_tasks[0].files or None) as sandbox:
            done = await sandbox.exec("echo 42 > answer.txt", timeout=10)
            answer = await sandbox.read_answer()
        if done.exit_code != 0 or answer.text != "42\n":
            raise SetupError(
                f"sandbox: a first command ended with {done.status.value}, exit code {done.exit_code}, "
                f"answer {answer.status.value}; run `sandbox-rl self-check` to see what this machine lacks"
            )
        lacks = "; ".join(backend.info.lacks) or "nothing"
        display.say(f"ok  sandbox: {backend.info.backend}, {backend.info.tier}; lacks {lacks}")
