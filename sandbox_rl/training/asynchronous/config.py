"""The `grpo:` block of an asynchronous recipe as TRL's `AsyncGRPOConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from trl.experimental.async_grpo import AsyncGRPOConfig

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.asynchronous.progress import MAX_STALENESS
from sandbox_rl.training.grpo import OURS, common_fields, refuse_misplaced, settled_arguments

TOKEN_BUDGET = 16_384
"""Tokens of one forward pass, unless an episode can be longer or the recipe says otherwise."""

_OURS = {
    "vllm_server_base_url": "set policy.base_urls",
    "max_inflight_tasks": "set rollout.concurrency",
    "queue_maxsize": "leave it out: grpo.max_staleness bounds what waits",
    "dtype": "set model.dtype",
    "model_init_kwargs": "set model.revision and other keys of the block model",
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
    longest: int,
    dtype: torch.dtype,
    adapters: bool = False,
    trust_remote_code: bool = False,
    **run: Any,
) -> AsyncGRPOConfig:
    """TRL's settings: our defaults, then the recipe's `grpo:` block.

    Args:
        longest: tokens of the longest episode with its prompt.
        dtype: what forward passes are computed in.
        adapters: whether the weights that are loaded stay as they are.
        run: what else `common_fields` takes.

    Raises:
        ConfigError: an unknown or refused field, or one that belongs elsewhere.
    """
    refuse_misplaced(block, OURS | _OURS)
    for field in _SYNC_ONLY:
        if field in block:
            raise ConfigError(
                f"key 'grpo.{field}' = {block[field]!r}: TRL's asynchronous trainer has one loss, clipped, "
                "averaged over tokens; drop the field, or set mode: sync"
            )
    if block.get("max_steps", -1) <= 0:
        raise ConfigError("grpo.max_steps: mode 'async' needs one; set it to the number of updates")
    fields = {
        **common_fields(dtype=dtype, **run),
        "token_budget": max(longest, TOKEN_BUDGET),
        "max_staleness": MAX_STALENESS,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "gradient_accumulation_steps": 1,
        "dtype": str(dtype).removeprefix("torch.") if adapters else "float32",
        "trust_remote_code": trust_remote_code,
        **block,
    }
    args: AsyncGRPOConfig = settled_arguments(AsyncGRPOConfig, fields, block)
    _check(args, longest)
    return args


def _check(args: AsyncGRPOConfig, longest: int) -> None:
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
