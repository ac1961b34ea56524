"""Loading what is trained, with one clear line for everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sandbox_rl.errors import ModelError
from sandbox_rl.training.config import ModelSettings

__all__ = ["configured_context", "context_length", "load_config", "load_model", "load_tokenizer"]


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, checked for what training needs.

    Raises:
        ModelError: not found, no chat template, no end-of-sequence token.
    """
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, settings)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model {settings.path!r}: its tokenizer has no EOS token, so no turn could end; "
            "set eos_token in tokenizer_config.json"
        )
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {settings.path!r}: its tokenizer has no chat template, expected a model tuned for "
            "conversation; save one as chat_template.jinja beside it"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """The causal language model, in the dtype asked for.

    Raises:
        ModelError: not found, or not a causal language model.
    """
    extra: dict[str, Any] = {"dtype": settings.dtype}
    if settings.attn_implementation is not None:
        extra["attn_implementation"] = settings.attn_implementation
    model: PreTrainedModel = _from_pretrained(AutoModelForCausalLM, settings, **extra)
    if model.dtype == torch.float16:
        raise ModelError(
            f"model {settings.path!r}: dtype float16 overflows in training; set model.dtype=bfloat16"
        )
    return model


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence that the model was made for, in tokens."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 20))


def configured_context(settings: ModelSettings) -> int:
    """As `context_length`, from the configuration alone: no weights are loaded.

    Raises:
        ModelError: not found.
    """
    config = load_config(settings)
    return int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 20))


def load_config(settings: ModelSettings) -> PretrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        ModelError: not found.
    """
    config: PretrainedConfig = _from_pretrained(AutoConfig, settings)
    return config


def _from_pretrained(loader: Any, settings: ModelSettings, **extra: Any) -> Any:
    try:
        return loader.from_pretrained(
            settings.path,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            **extra,
        )
    except (OSError, ValueError, KeyError) as error:
        place = "directory" if Path(settings.path).exists() else "local directory or Hub model"
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path: {settings.path!r} cannot be loaded as a {place} ({first_line}); "
            "give a directory made by save_pretrained, or an id that this machine can reach"
        ) from error
