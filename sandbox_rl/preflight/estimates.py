"""What a run will take, memory and time, and whether its sampler computes what its trainer computes."""

from __future__ import annotations

import math
import re

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import TransformersSettings, VLLMSettings
from sandbox_rl.training.config import LoraSettings, ModelSettings
from sandbox_rl.training.duration import DurationEstimate, device_named, estimate_duration, sampled_together
from sandbox_rl.training.memory import GIB, MASTER, MemoryEstimate, estimate_memory, model_shape
from sandbox_rl.training.models import compute_dtype, load_trained, stored_dtype
from sandbox_rl.training.placement import find_cards
from sandbox_rl.training.sampler_check import check_sampler
from sandbox_rl.training.tiny import tiny_model
from sandbox_rl.training.views import SharedArgs


def memory_of(
    recipe: Recipe,
    args: SharedArgs,
    config: PretrainedConfig,
    *,
    prompt: int,
    context: int,
    shards: int = 1,
    offloaded: bool = False,
) -> MemoryEstimate:
    """Memory of the trainer's process.

    Args:
        args: TRL's settings of the recipe.
        prompt, context: tokens of the longest prompt and of the model's longest sequence.
        shards: processes that the weights are divided over.
        offloaded: whether the host has the optimizer.
    """
    # A server has memory of its own; the weights that are published to it are ours.
    policy = recipe.policy
    sampled = (
        min(policy.max_batch, recipe.rollout.concurrency) if isinstance(policy, TransformersSettings) else 0
    )
    return estimate_memory(
        model_shape(config),
        args,
        recipe.model,
        prompt_tokens=prompt,
        completion_tokens=max(1, min(recipe.episode.max_tokens, context - prompt)),
        sampled_rows=sampled,
        stored_dtype=stored_dtype(config),
        shards=shards,
        micro_batch_tokens=recipe.update.micro_batch_tokens,
        card=bool(find_cards()),
        served=isinstance(policy, VLLMSettings),
        offloaded=offloaded,
    )


def host_memory_of(
    recipe: Recipe, config: PretrainedConfig, *, readers: int, as_stored: bool, offloaded: float
) -> str:
    """What a run on cards takes of the machine's own memory, beside sandboxes, scorers and libraries.

    Args:
        readers: processes of this machine that have the whole model there before it goes to the cards.
        as_stored: whether it is read in the type of its checkpoint, not in that which is trained: by ZeRO-3.
        offloaded: share of the optimizer, with its weights and gradients, that this machine's memory has.
    """
    size, compute = model_shape(config).parameters / GIB, compute_dtype(recipe.model).itemsize
    whole = recipe.model.lora is None
    loaded = size * (stored_dtype(config).itemsize if as_stored else MASTER if whole else compute)
    # Those that a server which is started again would get, and beside them the new ones.
    published = 2 * size * compute if isinstance(recipe.policy, VLLMSettings) else 0.0
    held = 4 * MASTER * size * offloaded * whole
    parts = [
        f"{readers} x {loaded:.1f} GiB to load the model",
        f"{published:.1f} while weights are published",
    ]
    parts += [f"{held:.1f} for the optimizer"] * (held > 0)
    return f"estimated {max(readers * loaded, published + held):.1f} GiB ({', '.join(parts)})"


def duration_of(
    recipe: Recipe, args: SharedArgs, config: PretrainedConfig, *, prompt: int, tasks: int
) -> DurationEstimate | None:
    """Of a synchronous run on this machine's device, or on an H100 where there is none.

    Returns:
        None for a model too small to tell.
    """
    policy = recipe.policy
    server = policy if isinstance(policy, VLLMSettings) else None
    episodes = args.per_device_train_batch_size * args.gradient_accumulation_steps
    stored = stored_dtype(config)
    dtype = stored if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    passes = math.ceil(args.num_train_epochs * tasks * args.num_generations / episodes)
    return estimate_duration(
        model_shape(config),
        device_named(cards[0].name if (cards := find_cards()) else ""),
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
        shards=server.shards if server is not None else 1,
    )


def sampler_gap(
    settings: ModelSettings, policy: TransformersSettings, tokenizer: PreTrainedTokenizerBase
) -> float:
    """Largest difference of log-probabilities between sampler and trainer, in nats per token.

    Raises:
        ConfigError: it is above `policy.mismatch_alarm`, or the adapters name no module of the model.
    """
    model = tiny_model(tokenizer) if settings.path == "tiny" else load_trained(settings)
    check_lora_targets(settings.lora, model)
    if torch.cuda.is_available() and settings.quantization is None:
        model = model.to("cuda")
    return check_sampler(model, compute_dtype(settings), path=settings.path, largest=policy.mismatch_alarm)


def check_lora_targets(lora: LoraSettings | None, model: torch.nn.Module) -> None:
    """Refuse names of modules that the model lacks: peft passes over them as long as one other is there.

    Raises:
        ConfigError: names the first.
    """
    if lora is None or lora.target_modules == "all-linear":
        return
    targets = lora.target_modules
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        missing = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        missing = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in names)]
    if missing:
        linear = {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        raise ConfigError(
            f"model.lora.target_modules: the model has no module {missing[0]!r}, expected some of "
            f"{', '.join(sorted(linear)[:12])}; or leave it out for all linear layers"
        )
