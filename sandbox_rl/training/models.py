"""Loading what is trained, with one clear line for everything that can be wrong with it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.errors import ModelError
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.pretrained import from_pretrained, load_config


def check_quantization(settings: ModelSettings) -> None:
    """Refuse quantisation where it is not available, before a model is loaded.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if settings.quantization is not None and find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: {settings.quantization!r} needs bitsandbytes, which is not installed; "
            "pip install 'sandbox-rl[qlora]', or drop the key"
        )


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """The causal language model, in the dtype asked for; with `quantization` on this process's device.

    Raises:
        ModelError: not found, not a causal language model, or bitsandbytes is missing.
    """
    extra: dict[str, Any] = {"dtype": settings.dtype}
    if settings.quantization is not None:
        check_quantization(settings)
        extra |= _quantized(settings)
    if settings.attn_implementation is not None:
        extra["attn_implementation"] = settings.attn_implementation
    model: PreTrainedModel = from_pretrained(AutoModelForCausalLM, settings, **extra)
    for module in model.modules():
        # bitsandbytes would pack weights for CPUs with AVX512-BF16 at the first inference and leave them so:
        # rounded to bfloat16, and in an order that dequantisation does not know.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_trained(settings: ModelSettings) -> PreTrainedModel:
    """The model as training starts from it: float32, or frozen in the type computed in under adapters.

    Raises:
        ModelError: as `load_model`.
    """
    compute_dtype(settings)
    whole = settings.lora is None
    return load_model(settings.model_copy(update={"dtype": "float32"}) if whole else settings)


def compute_dtype(settings: ModelSettings) -> torch.dtype:
    """What forward passes of training are computed in: `dtype`, for `auto` what the checkpoint is stored in.

    Raises:
        ModelError: not found, or float16.
    """
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
    else:
        dtype = torch.float32 if settings.path == "tiny" else stored_dtype(load_config(settings))
    if dtype == torch.float16:
        raise ModelError(
            f"model {settings.path!r}: dtype float16 overflows in training; set model.dtype=bfloat16"
        )
    return dtype


def with_compute_dtype(settings: ModelSettings) -> ModelSettings:
    """The same with `dtype: auto` settled: a warm-up and checkpoints are stored in another type.

    Raises:
        ModelError: as `compute_dtype`.
    """
    return settings.model_copy(update={"dtype": str(compute_dtype(settings)).removeprefix("torch.")})


def load_adapted(checkpoint: Path, settings: ModelSettings) -> PeftModel:
    """The adapters of a checkpoint on the model that they were trained on, loaded as it was then.

    Raises:
        ModelError: as `load_model`.
    """
    base = str(PeftConfig.from_pretrained(checkpoint).base_model_name_or_path)
    return PeftModel.from_pretrained(load_model(settings.model_copy(update={"path": base})), checkpoint)


def _quantized(settings: ModelSettings) -> dict[str, Any]:
    """NF4 with quantised constants, computed in the dtype of the model (arXiv 2305.14314, section 3)."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(settings),
    )
    placed = {"device_map": {"": PartialState().device}} if torch.cuda.is_available() else {}
    return {"quantization_config": config, **placed}


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The type that a checkpoint's weights are stored in, float32 if it does not say."""
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def context_length(config: PretrainedConfig) -> int:
    """Longest sequence that a model was made for, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 20))


def end_turns_with(model: PreTrainedModel | PeftModel, ends: TurnEnds) -> None:
    """Have the model's generation config end turns at `ends`.

    TRL reads it when a trainer is made, to tell truncated completions from others, and it is saved with
    every checkpoint; with a generation config that knows no turn end, an exported model writes on.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.generation_config is None:
        base.generation_config = GenerationConfig()
    base.generation_config.eos_token_id = ends.listed if len(ends.ids) > 1 else ends.written
