"""From a recipe to what stands on PyTorch: the policy of this process, and TRL's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.policies.base import UNTRAINED, WeightVersion
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.policies.transformers import TransformersPolicy
from sandbox_rl.training.grpo import grpo_config
from sandbox_rl.training.models import compute_dtype, context_length, with_compute_dtype
from sandbox_rl.training.precision import computing
from sandbox_rl.training.views import AsyncArgs, RunArgs, SyncArgs


def settled(recipe: Recipe) -> Recipe:
    """The same recipe with `model.dtype: auto` settled, once and for all stages.

    Raises:
        ModelError: the model is not found, or stored in float16.
    """
    return recipe.model_copy(update={"model": with_compute_dtype(recipe.model)})


def build_policy(
    settings: TransformersSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatFormat,
    *,
    version: WeightVersion = UNTRAINED,
    lease: ModelLease | None = None,
    compute: torch.dtype | None = None,
) -> TransformersPolicy:
    """The policy that samples from a model of this process.

    Args:
        lease: of a model that is trained too.
        compute: what a model of float32 weights is computed in; None as it is stored.
    """
    return TransformersPolicy(
        model,
        end_ids=chat.ends.ids,
        pad_id=tokenizer.pad_token_id,
        max_context=context_length(model.config),
        max_batch=settings.max_batch,
        max_delay_s=settings.max_delay_s,
        version=version,
        lease=ModelLease(always=True) if lease is None else lease,
        compute=lambda: computing(model.device, compute),
    )


def training_arguments(recipe: Recipe, checkpoints: Path, *, longest: int = 1) -> RunArgs:
    """TRL's settings for the recipe's mode: its `GRPOConfig`, or its experimental `AsyncGRPOConfig`.

    Args:
        longest: tokens of the longest episode with its prompt, for asynchronous training; 1: not known yet.

    Raises:
        ConfigError: a field that TRL does not know or refuses, a batch that splits groups, or a token budget
            that is too small.
    """
    shared: dict[str, Any] = {
        "checkpoints": checkpoints,
        "name": recipe.name,
        "seed": recipe.seed,
        "max_tokens": recipe.episode.max_tokens,
        "dtype": compute_dtype(recipe.model),
        "report_to": recipe.report_to,
    }
    if recipe.mode == "sync":
        sync_args: SyncArgs = grpo_config(recipe.grpo, estimator=recipe.estimator, **shared)
        return sync_args
    from sandbox_rl.training.asynchronous.config import async_config  # TRL's experimental part takes a second

    async_args: AsyncArgs = async_config(
        recipe.grpo,
        longest=longest,
        adapters=recipe.model.lora is not None,
        trust_remote_code=recipe.model.trust_remote_code,
        **shared,
    )
    return async_args
