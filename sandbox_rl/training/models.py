"""Loading what is trained, with one clear line for everything that can be wrong with it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.errors import ModelError, environment_error
from sandbox_rl.training.config import ModelSettings

HUB_TIMEOUT_S = 20.0
"""Within which the Hub must say whether it has a model."""


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
    model: PreTrainedModel = _from_pretrained(AutoModelForCausalLM, settings, **extra)
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


def generation_ends(model: ModelSettings | PreTrainedModel | PeftModel) -> tuple[int, ...]:
    """The ids at which the model's generation config ends a text, or else its configuration.

    Raises:
        ModelError: the model is not found.
    """
    generation = model.generation_config if not isinstance(model, ModelSettings) else _generation(model)
    found = None if generation is None else generation.eos_token_id
    if found is None:
        config = load_config(model) if isinstance(model, ModelSettings) else model.config
        found = getattr(config.get_text_config(), "eos_token_id", None)
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)


def _generation(settings: ModelSettings) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(settings.path, revision=settings.revision)
    except (OSError, ValueError):  # a model need not have one
        return None


def end_turns_with(model: PreTrainedModel | PeftModel, ends: TurnEnds) -> None:
    """Have the model's generation config end turns at `ends`.

    TRL reads it when a trainer is made, to tell truncated completions from others, and it is saved with
    every checkpoint; with a generation config that knows no turn end, an exported model writes on.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.generation_config is None:
        base.generation_config = GenerationConfig()
    base.generation_config.eos_token_id = ends.listed if len(ends.ids) > 1 else ends.written


def load_config(settings: ModelSettings) -> PretrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        ModelError: not found.
    """
    config: PretrainedConfig = _from_pretrained(AutoConfig, settings)
    return config


def _from_pretrained(loader: Any, settings: ModelSettings, **extra: Any) -> Any:
    try:
        _look_for(settings.path, settings.revision)
        return loader.from_pretrained(
            settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code, **extra
        )
    except (OSError, ValueError, KeyError) as error:
        place = "directory" if Path(settings.path).exists() else "local directory or Hub model"
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path: {settings.path!r} cannot be loaded as a {place} ({first_line}); "
            "give a directory made by save_pretrained, or an id that this machine can reach"
        ) from error


@cache
def _look_for(path: str, revision: str | None) -> None:
    """Ask the Hub once whether a model is there: its loaders try for a minute, for each file, if it is not.

    Raises:
        OSError, ValueError: it is not, or the Hub is out of reach and the model is not in the cache.
    """
    if Path(path).exists() or HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        return
    try:
        HfApi().model_info(path, revision=revision, timeout=HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        code = error.response.status_code
        raise OSError(f"the Hub answers {code}: it has no such model, or not for you") from error
    except HFValidationError:
        raise
    except Exception as error:
        if (said := environment_error(error)) is not None:
            raise OSError(said) from error
        # A mirror may not know this request: its files decide.
