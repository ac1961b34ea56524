"""The `grpo:` block of a recipe as a `trl.GRPOConfig`, with what sandbox_rl settles by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from trl import GRPOConfig

from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.base import Sampling
from sandbox_rl.training.agreement import LONGEST_WAIT_S
from sandbox_rl.training.estimator import Estimator, estimator_fields
from sandbox_rl.training.fields import check_numbers, check_trackers, checked_fields
from sandbox_rl.training.generations import Generations
from sandbox_rl.training.precision import check_precision
from sandbox_rl.training.views import SamplingArgs

OURS = {
    "output_dir": "set output_dir and name of the recipe",
    "seed": "set seed of the recipe",
    "report_to": "set report_to of the recipe",
    "eval_strategy": "set evaluation.every_steps; held-out tasks are evaluated by sandbox_rl",
    "use_vllm": "set policy.type",
    "resume_from_checkpoint": "use --resume",
    "bf16": "set model.dtype",
    "fp16": "set model.dtype; float16 is not offered",
    "auto_find_batch_size": "set per_device_train_batch_size; groups must stay whole",
    "fsdp": "set launch.config=fsdp2",
    "deepspeed": "set launch.config=zero3",
}
"""Fields of GRPOConfig that the recipe says elsewhere, and where."""


def grpo_config(block: Mapping[str, Any], *, estimator: Estimator, **run: Any) -> GRPOConfig:
    """TRL's settings: our defaults, then the estimator's, then the recipe's `grpo:` block.

    Args:
        run: see `common_fields`.

    Raises:
        ConfigError: an unknown or refused field, one that belongs elsewhere, or a batch that would
            split a group of rollouts.
    """
    refuse_misplaced(block, OURS)
    fields = {
        **common_fields(**run),
        "logging_nan_inf_filter": False,
        # Only read with vLLM: the sampler's log-probs differ from the trainer's there, and long
        # episodes need the correction per token (a product over thousands of tokens explodes).
        "vllm_importance_sampling_mode": "token_truncate",
        **estimator_fields(estimator),
        **block,
    }
    _check_groups(fields)
    args: GRPOConfig = settled_arguments(GRPOConfig, fields, block)
    _check(args)
    return args


def refuse_misplaced(block: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Refuse fields that the recipe says elsewhere.

    Args:
        places: field → where it is said.

    Raises:
        ConfigError: the field.
    """
    for field, where in places.items():
        if field in block:
            raise ConfigError(f"key 'grpo.{field}' = {block[field]!r} belongs elsewhere: {where}")


def common_fields(
    *,
    checkpoints: Path,
    name: str,
    seed: int,
    max_tokens: int,
    dtype: torch.dtype,
    report_to: Sequence[str] = (),
) -> dict[str, Any]:
    """What both of TRL's trainers are told unless the recipe says otherwise.

    Args:
        max_tokens: completion tokens of an episode; `dr_grpo` divides by it.
        dtype: what forward passes are computed in.
    """
    cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints),
        "seed": seed,
        "report_to": list(report_to) or ["none"],
        "run_name": name,
        "max_completion_length": max_tokens,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_steps": 50,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": cpu,
        # For the vocabulary in float32: bf16 factors are exact in it, and it is several times as fast.
        "tf32": True if not cpu and torch.cuda.get_device_capability() >= (8, 0) else None,
        "ddp_timeout": int(LONGEST_WAIT_S),
    }


def settled_arguments(
    cls: type[TrainingArguments], fields: Mapping[str, Any], block: Mapping[str, Any]
) -> Any:
    """TRL's settings, checked as far as both of its trainers want the same.

    Args:
        cls: the class of settings.
        fields: all that is set; `block` is the recipe's part of it.

    Raises:
        ConfigError: an unknown or refused field.
    """
    check_numbers(block)
    check_trackers(fields["report_to"])
    args = checked_fields(cls, "grpo", fields)
    args.mixed_precision = "bf16" if args.bf16 else "no"  # a launcher's configuration says it otherwise
    check_precision(args)
    check_untruncated(args)
    check_optimizer(args)
    return args


def sampling_of(args: GRPOConfig) -> Sampling:
    """How training samples: as TRL's log-probs are computed. Truncation is refused (`check_untruncated`)."""
    return Sampling(temperature=args.temperature)


def check_untruncated(args: SamplingArgs) -> None:
    """Refuse sampling that is not of the whole distribution.

    Raises:
        ConfigError: the field.
    """
    for name, neutral in (("top_p", 1.0), ("min_p", None), ("repetition_penalty", 1.0)):
        if getattr(args, name) not in (neutral, None):
            raise ConfigError(
                f"grpo.{name}: {getattr(args, name)}, expected {neutral}; truncated sampling biases the "
                "gradient, because TRL's log-probs are of the whole distribution"
            )
    if args.top_k not in (0, -1, None):
        raise ConfigError(f"grpo.top_k: {args.top_k}, expected 0; truncated sampling biases the gradient")


def check_optimizer(args: TrainingArguments) -> None:
    """Refuse an optimizer of bitsandbytes where that is missing, before a model is loaded.

    Raises:
        ConfigError: the field.
    """
    name = str(getattr(args.optim, "value", args.optim))
    if any(part in name for part in ("8bit", "paged", "bnb")) and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"grpo.optim: {name!r} is bitsandbytes', which is not installed; pip install bitsandbytes, or "
            "drop the field"
        )


def _check_groups(fields: Mapping[str, Any]) -> None:
    """Each process must roll out whole groups; TRL itself only looks at all processes together."""
    batch = fields.get("per_device_train_batch_size", 8)
    steps = fields.get("steps_per_generation") or fields.get("gradient_accumulation_steps", 1)
    size = fields.get("num_generations", 8)
    numbers = all(isinstance(number, int) and number > 0 for number in (batch, steps, size))
    if "generation_batch_size" not in fields and numbers and batch * steps % size:
        raise ConfigError(
            f"grpo: each process rolls out {batch * steps} episodes (per_device_train_batch_size {batch} x "
            f"{steps} steps per generation), which splits groups of num_generations={size}; make it a "
            f"multiple of {size}, e.g. per_device_train_batch_size={size}"
        )


def _check(args: GRPOConfig) -> None:
    local = args.generation_batch_size // args.world_size
    if local % args.num_generations:
        raise ConfigError(
            f"grpo.generation_batch_size: {args.generation_batch_size} over {args.world_size} processes "
            f"splits groups of num_generations={args.num_generations}; make it a multiple of "
            f"{args.num_generations * args.world_size}"
        )
    if args.save_strategy not in ("no", "steps"):
        raise ConfigError(
            f"grpo.save_strategy: {args.save_strategy.value!r}, expected 'steps' or 'no'; set save_steps "
            "to a number of updates"
        )
    period = Generations.of(args).period
    for name in ("save_steps", "max_steps"):
        value = getattr(args, name)
        if value >= 1 and value % period and (name != "save_steps" or args.save_strategy == "steps"):
            raise ConfigError(
                f"grpo.{name}: {value:g}, expected a multiple of {period}, the updates from one generation's "
                "end to the next; a checkpoint in between would lose the rollouts that it has not used yet"
            )
