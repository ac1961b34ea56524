"""`--dry-run`: everything that can be wrong is found before the first second of training."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path
from typing import Any

import torch

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.commands.parts import (
    build_backend,
    build_chat,
    build_render,
    build_scoring,
    settled,
    training_arguments,
)
from sandbox_rl.commands.suite_runs import SuiteRuns
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError, DataError, SetupError
from sandbox_rl.policies.config import TransformersSettings, VLLMSettings
from sandbox_rl.policies.vllm.launch import check_socket_room, interpreter
from sandbox_rl.preflight.context import budget_warnings, check_room
from sandbox_rl.rewards.golds import GoldReport, check_golds
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rewards.trial import PROBED, SourceSample, try_rewards
from sandbox_rl.runs.directory import check_output_dir
from sandbox_rl.runs.starting_point import needs_warmup
from sandbox_rl.tasks.load import TaskSet, load_tasks
from sandbox_rl.training.config import LoraSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.duration import (
    DurationEstimate,
    device_named,
    estimate_duration,
    sampled_together,
)
from sandbox_rl.training.experts import load_expert
from sandbox_rl.training.grpo import sampling_of
from sandbox_rl.training.memory import ModelShape, estimate_memory, model_shape
from sandbox_rl.training.models import (
    check_quantization,
    compute_dtype,
    configured_context,
    generation_ends,
    load_config,
    load_tokenizer,
    load_trained,
    stored_dtype,
)
from sandbox_rl.training.sampler_check import check_rope, check_sampler
from sandbox_rl.training.tiny import CONTEXT, tiny_config, tiny_model, tiny_tokenizer
from sandbox_rl.training.tree_check import check_tree_config

__all__ = ["check", "check_curriculum", "check_gold", "check_prompts", "check_rewards", "reward_samples"]

LONGEST = 64
"""How many of the longest problem statements are rendered and counted."""


def check(recipe: Recipe, *, base_dir: Path, display: Display) -> None:
    """Resolve and try everything but training; writes nothing.

    Raises:
        UserError: the first thing that is wrong.
    """
    check_output_dir(Path(recipe.output_dir))
    recipe = settled(recipe)
    tasks = load_tasks(recipe.data, split="train", base_dir=base_dir)
    held_out = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
    display.say(f"ok  data: {len(tasks)} training tasks, {len(held_out)} held out")
    check_curriculum(recipe, tasks)
    if (suite := SuiteRuns.of(recipe)) is not None:
        display.say(f"ok  suite: {suite.summary}")
    args = training_arguments(recipe, Path(recipe.output_dir))
    sampling_of(args)
    if recipe.mode == "async":
        display.say(f"ok  grpo: asynchronous, {args.max_steps} updates, staleness of {args.max_staleness}")
    else:
        display.say(f"ok  grpo: {args.generation_batch_size} episodes per generation, {args.loss_type} loss")
    if recipe.warmup is not None:
        load_expert(recipe.warmup.expert)
    needs_warmup(recipe)
    if isinstance(recipe.policy, VLLMSettings):
        if recipe.policy.engine == "managed":
            interpreter(recipe.policy)
            check_socket_room()
        display.say(f"ok  policy: vLLM, {recipe.policy.engine}; its own arguments are checked at its start")
    check_quantization(recipe.model)
    tiny = recipe.model.path == "tiny"
    # The tiny model's own tokenizer is trained during the warm-up and only ever shorter than bytes.
    tokenizer = tiny_tokenizer() if tiny else load_tokenizer(recipe.model)
    chat = build_chat(recipe, tokenizer, () if tiny else generation_ends(recipe.model))
    context = CONTEXT if tiny else configured_context(recipe.model)
    prompt = check_prompts(recipe, base_dir, chat, tasks, context=None if tiny else context)
    display.say(f"ok  model: {recipe.model.path}, context of {context} tokens, chat template usable")
    for warning in () if tiny else budget_warnings(chat, recipe.episode, prompt=prompt, context=context):
        display.say(f"warning: {warning}")
    config = tiny_config(tokenizer) if tiny else load_config(recipe.model)
    check_rope(config, longest=min(context, prompt + recipe.episode.max_tokens), path=recipe.model.path)
    if recipe.mode == "async":
        check_tree_config(
            config,
            path=recipe.model.path,
            cuda=torch.cuda.is_available(),
            trust_remote_code=recipe.model.trust_remote_code,
        )
    memory = estimate_memory(
        model_shape(config),
        args,
        recipe.model,
        prompt_tokens=prompt,
        completion_tokens=max(1, min(recipe.episode.max_tokens, context - prompt)),
        sampled_rows=_sampled_rows(recipe),
        stored_dtype=stored_dtype(config),
        micro_batch_tokens=recipe.update.micro_batch_tokens,
    )
    display.say(f"ok  memory: {memory}")
    duration = _duration(recipe, args, model_shape(config), stored_dtype(config), prompt, len(tasks))
    display.say(f"ok  duration: {duration or 'not estimated for so small a model'}")
    if isinstance(recipe.policy, TransformersSettings):
        display.say(f"ok  sampler: {_sampler_gap(recipe, tokenizer):.4f} nats per token from the trainer")
    asyncio.run(_try_sandbox(recipe, base_dir, tasks, display))


def check_lora_targets(lora: LoraSettings | None, model: torch.nn.Module) -> None:
    """Refuse names of modules that the model lacks: peft passes over them as long as one other is there.

    Raises:
        ConfigError: names the first.
    """
    if lora is None or lora.target_modules == "all-linear":
        return
    names = [name for name, _ in model.named_modules()]
    if isinstance(lora.target_modules, str):
        missing: tuple[str, ...] = (
            () if any(re.fullmatch(lora.target_modules, name) for name in names) else (lora.target_modules,)
        )
    else:
        missing = tuple(t for t in lora.target_modules if not any(f".{n}".endswith(f".{t}") for n in names))
    if missing:
        linear = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear)
            }
        )
        raise ConfigError(
            f"model.lora.target_modules: the model has no module {missing[0]!r}, expected some of "
            f"{', '.join(linear[:12])}; or leave it out for all linear layers"
        )


def _sampler_gap(recipe: Recipe, tokenizer: Any) -> float:
    tiny = recipe.model.path == "tiny"
    model = tiny_model(tokenizer) if tiny else load_trained(recipe.model)
    check_lora_targets(recipe.model.lora, model)
    if torch.cuda.is_available() and recipe.model.quantization is None:
        model = model.to("cuda")
    assert isinstance(recipe.policy, TransformersSettings)
    return check_sampler(
        model,
        compute_dtype(recipe.model),
        path=recipe.model.path,
        largest=recipe.policy.mismatch_alarm,
    )


def _duration(
    recipe: Recipe, args: Any, shape: ModelShape, stored: torch.dtype, prompt: int, tasks: int
) -> DurationEstimate | None:
    """Of a synchronous run on this machine's device, or on an H100 where there is none."""
    policy = recipe.policy
    server = policy if isinstance(policy, VLLMSettings) else None
    episodes = args.per_device_train_batch_size * args.gradient_accumulation_steps
    dtype = stored if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    passes = math.ceil(args.num_train_epochs * tasks * args.num_generations / episodes)
    return estimate_duration(
        shape,
        device_named(torch.cuda.get_device_name() if torch.cuda.is_available() else ""),
        updates=args.max_steps if args.max_steps > 0 else passes,
        episodes=episodes,
        rows=sampled_together(
            policy.type, getattr(policy, "max_batch", episodes), recipe.rollout.concurrency, episodes
        ),
        prompt_tokens=prompt,
        max_tokens=recipe.episode.max_tokens,
        server=server is not None,
        lora=recipe.model.lora is not None,
        item=dtype.itemsize,
        shards=int(server.arguments.get("tensor-parallel-size", 1)) if server is not None else 1,
    )


def _sampled_rows(recipe: Recipe) -> int:
    """Sequences that the trainer's process samples at once; a server has memory of its own."""
    if isinstance(recipe.policy, VLLMSettings):
        return 0
    return min(recipe.policy.max_batch, recipe.rollout.concurrency)


def check_curriculum(recipe: Recipe, tasks: TaskSet) -> None:
    """Refuse a curriculum that does not fit the data.

    Raises:
        ConfigError: weights of domains that are not there, or left out.
    """
    if recipe.curriculum.active:
        Curriculum({task.id: task.domain for task in tasks}, recipe.curriculum, seed=recipe.seed)


def check_prompts(
    recipe: Recipe, base_dir: Path, chat: ChatFormat, tasks: TaskSet, *, context: int | None
) -> int:
    """The tokens of the longest prompt, once it is sure that all leave the policy room to act.

    Args:
        context: longest sequence of the model in tokens; None renders without counting.

    Raises:
        ConfigError: a task's prompt does not fit, or has no prompt set.
    """
    render = build_render(recipe, base_dir)
    longest = 0
    for task in sorted(tasks, key=lambda task: len(task.prompt), reverse=True)[:LONGEST]:
        length = len(chat.render_prompt(render(task)))
        if context is not None:
            check_room(chat, task.id, prompt=length, context=context)
        longest = max(longest, length)
    return longest


async def _try_sandbox(recipe: Recipe, base_dir: Path, tasks: TaskSet, display: Display) -> None:
    async with build_backend(recipe) as backend, build_scoring(recipe, base_dir) as scoring:
        async with backend.sandbox(tasks[0].files or None) as sandbox:
            done = await sandbox.exec("echo 42 > answer.txt", timeout=10)
            answer = await sandbox.read_answer()
        if done.exit_code != 0 or answer.text != "42\n":
            raise SetupError(
                f"sandbox: a first command ended with {done.status.value}, exit code {done.exit_code}, "
                f"answer {answer.status.value}; run `sandbox-rl self-check` to see what this machine lacks"
            )
        lacks = "; ".join(backend.info.lacks) or "nothing"
        display.say(f"ok  sandbox: {backend.info.backend}, {backend.info.tier}; lacks {lacks}")
        notes = await _checked(recipe, tasks, scoring)
        display.say(f"ok  reward: the gold answers of {len(tasks)} tasks can be scored")
        for note in notes:
            display.say(note)


async def check_rewards(recipe: Recipe, base_dir: Path, tasks: TaskSet) -> list[str]:
    """Try the scorers before anything that takes long; returns what a person should know, one line each.

    Raises:
        UserError: no scorer can use a gold answer, a scorer cannot work, or its reward can be bought.
    """
    async with build_scoring(recipe, base_dir) as scoring:
        return await _checked(recipe, tasks, scoring)


async def _checked(recipe: Recipe, tasks: TaskSet, scoring: ScoringPool) -> list[str]:
    samples = reward_samples(recipe, tasks)
    notes = [f"warning: {warning}" for warning in await try_rewards(scoring, samples)]
    golds = await check_gold(recipe, tasks, scoring)
    return [*notes, f"gold answers: {golds}"] if golds.as_text else notes


def reward_samples(recipe: Recipe, tasks: TaskSet) -> list[SourceSample]:
    """Some tasks of every source, on which its scorers are tried before training."""
    settings = recipe.data.sources
    return [
        SourceSample(
            tasks.source_name(number),
            sample,
            gold_is_answer=settings[number].gold_is_answer,
            accept_degenerate=settings[number].accept_degenerate,
        )
        for number, sample in tasks.of_each_source(PROBED).items()
    ]


async def check_gold(recipe: Recipe, tasks: TaskSet, scoring: ScoringPool) -> GoldReport:
    """Look at the gold answer of every task.

    Raises:
        DataError: no scorer can use one of them. Those that are compared as text are sound.
    """
    reward = recipe.reward
    names = (reward.scorer,) if reward.scorer is not None else tuple(reward.composite)
    report = await asyncio.to_thread(check_golds, tasks, names)
    bad = {**report.bad, **await scoring.check_gold([tasks[place] for place in report.in_workers])}
    if bad:
        first, reason = next(iter(bad.items()))
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DataError(
            f"data: the gold answer of task {first!r} cannot be scored: {reason}{more}; fix the row"
        )
    return report
