"""In which precision a model is computed, and that what an optimizer updates is float32 everywhere.

A bfloat16 weight has 8 significant bits: AdamW at a learning rate of 1e-6 moves a weight of 0.02 by a
hundredth of the distance to its neighbour, so nearly every update rounds to nothing. `model.dtype` therefore
says what forward passes are computed in. The values that the optimizer updates are float32 masters:

- one process, data parallelism: float32 weights, computed under autocast;
- FSDP2: float32 shards, gathered in the type computed in;
- DeepSpeed: its own float32 masters beside the module, which it casts;
- LoRA, QLoRA: float32 adapters on frozen weights of the type computed in, or of 4 bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from transformers import PreTrainedModel

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.views import PrecisionView


def computing(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which float32 weights are computed with in `dtype`, as the trainer does; None: as stored.

    Casts are not kept: the cache of autocast is one for all threads, and would hand the sampler's tensors,
    which have no gradient, to the loss.
    """
    low = dtype in (torch.bfloat16, torch.float16)
    context: AbstractContextManager[Any] = torch.autocast(
        device.type, dtype if low else None, enabled=low, cache_enabled=False
    )
    return context


def check_precision(args: object) -> None:
    """Refuse what would take bits from the weights that are trained.

    Args:
        args: `transformers.TrainingArguments`.

    Raises:
        ConfigError: the setting.
    """
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(args, name, False):
            raise ConfigError(f"grpo.{name}: true, expected false; it rounds the trained weights in place")
    plugin = getattr(args, "deepspeed_plugin", None)
    block = {} if plugin is None else plugin.deepspeed_config.get("bf16", {})
    for name in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        if block.get(name):
            raise ConfigError(
                f"DeepSpeed's bf16.{name}: true, expected false; updates at small learning rates are lost to "
                "rounding in bfloat16"
            )


def settle_precision(trainer: PrecisionView) -> None:
    """Give a trainer of transformers, before it trains, float32 masters and computation that keeps them.

    Raises:
        ConfigError: its settings cannot.
    """
    check_precision(trainer.args)
    accelerator = trainer.accelerator
    if not trainer.is_deepspeed_enabled:  # which keeps masters of its own, and one type per module
        master_weights(trainer.model)
    if trainer.args.bf16:
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is not None:
                low_residual(trainer.accelerator.unwrap_model(model), torch.bfloat16)
    # A copy of each weight would be kept through the forward pass, for nothing: each is used once.
    accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and accelerator.is_fsdp2 and plugin.mixed_precision_policy is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # accelerate would also round what comes out, log-probs, and the sum of gradients over processes.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype, reduce_dtype=torch.float32
        )


def low_residual(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Have float32 weights compute as those of `dtype` do: what layers add to is `dtype` from the start.

    Under autocast alone it is as wide as the embedding's weights: other numbers than a server's or a sharded
    model's, and twice the memory of what checkpointing keeps.
    """
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.to(dtype))


def master_weights(model: torch.nn.Module) -> None:
    """Make everything that is trained float32, in place. TRL rounds the adapters of quantised models."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
