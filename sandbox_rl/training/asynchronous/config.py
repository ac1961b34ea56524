"""The `grpo:` block of an asynchronous recipe as TRL's `AsyncGRPOConfig`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from trl.experimental.async_grpo import AsyncGRPOConfig

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.estimator import Estimator
from sandbox_rl.training.fields import checked_fields
from sandbox_rl.training.grpo import OURS, check_optimizer, check_untruncated
from sandbox_rl.training.precision import check_precision
from sandbox_rl.training.ranges import check_numbers, check_trackers
from sandbox_rl.training.samples import Advantage

__all__ = ["advantage_of", "async_config"]

TOKEN_BUDGET = 16_384
"""Tokens of one forward pass, unless an episode can be longer or the recipe says otherwise."""

MAX_STALENESS = 4
"""Updates that any trained token may be old (`async_admission.py`): the update waits rather than train on an
older one, and nothing is dropped. 0: sampling and updates take turns. Lower is nearer to on-policy, higher
waits less for episodes that outlast several updates."""

_OURS = {
    "vllm_server_base_url": "set policy.base_urls",
    "max_inflight_tasks": "set rollout.concurrency",
    "queue_maxsize": "leave it away: grpo.max_staleness bounds what waits",
    "dtype": "set model.dtype",
    "model_init_kwargs": "set model.revision and the like",
    "trust_remote_code": "set model.trust_remote_code",
    "max_tool_calling_iterations": "set episode.max_turns",
    "chat_template_kwargs": "set chat.template_options",
}
_SYNC_ONLY = (
    "loss_type",
    "scale_rewards",
    "beta",
    "num_iterations",
    "steps_per_generation",
    "generation_batch_size",
)
"""Fields of the synchronous trainer that people carry over."""


def async_config(
    block: Mapping[str, Any],
    *,
    checkpoints: Path,
    name: str,
    seed: int,
    max_tokens: int,
    longest: int,
    dtype: torch.dtype,
    adapters: bool = False,
    trust_remote_code: bool = False,
    report_to: Sequence[str] = (),
) -> AsyncGRPOConfig:
    """TRL's settings: our defaults, then the recipe's `grpo:` block.

    Args:
        longest: tokens of the longest episode with its prompt.
        dtype: what forward passes are computed in.
        adapters: whether the weights that are loaded stay as they are.

    Raises:
        ConfigError: an unknown or refused field, or one that belongs elsewhere.
    """
    for field, where in (OURS | _OURS).items():
        if field in block:
            raise ConfigError(f"key 'grpo.{field}' = {block[field]!r} belongs elsewhere: {where}")
    for field in _SYNC_ONLY:
        if field in block:
            raise ConfigError(
                f"key 'grpo.{field}' = {block[field]!r}: TRL's asynchronous trainer has one loss, clipped, "
                "averaged over tokens; drop the field, or set mode: sync"
            )
    if block.get("max_steps", -1) <= 0:
        raise ConfigError("grpo.max_steps: mode 'async' needs one; set it to the number of updates")
    cpu = not torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "seed": seed,
        "report_to": list(report_to) or "none",
        "run_name": name,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_steps": 50,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "max_completion_length": max_tokens,
        "token_budget": max(longest, TOKEN_BUDGET),
        "max_staleness": MAX_STALENESS,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "gradient_accumulation_steps": 1,
        "dtype": str(dtype).removeprefix("torch.") if adapters else "float32",
        "trust_remote_code": trust_remote_code,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": cpu,
        # For the vocabulary in float32: bf16 factors are exact in it, and it is several times as fast.
        "tf32": True if not cpu and torch.cuda.get_device_capability() >= (8, 0) else None,
        "ddp_timeout": 7200,
    }
    known = set(inspect.signature(AsyncGRPOConfig.__init__).parameters) - {"self"}
    check_numbers(block)
    check_trackers(report_to)
    args = checked_fields(AsyncGRPOConfig, "grpo", defaults | dict(block), known)
    args.mixed_precision = "bf16" if args.bf16 else "no"  # a launcher's configuration says it otherwise
    check_precision(args)
    check_untruncated(args)
    check_optimizer(args)
    if not args.token_budget or args.token_budget < longest:
        raise ConfigError(
            f"grpo.token_budget: {args.token_budget}, expected at least {longest}, the longest prompt "
            "with episode.max_tokens; raise it, or lower episode.max_tokens"
        )
    least = max(0, args.weight_sync_steps - 1)
    if args.max_staleness < least:
        raise ConfigError(
            f"grpo.max_staleness: {args.max_staleness}, expected at least {least}, since weights are "
            f"published every {args.weight_sync_steps} updates; raise it, or lower grpo.weight_sync_steps"
        )
    return args


def advantage_of(estimator: Estimator) -> Advantage:
    """The paper's leave-one-out baseline, or group-normalised rewards."""
    return "rloo" if estimator == "paper" else "grpo"
