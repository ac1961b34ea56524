"""Does the in-process sampler compute what the trainer computes?"""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedTokenizerBase

from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.training.config import LoraSettings, ModelSettings
from sandbox_rl.training.models import compute_dtype, load_trained
from sandbox_rl.training.sampler_check import check_sampler
from sandbox_rl.training.tiny import tiny_model

__all__ = ["check_lora_targets", "sampler_gap"]


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
