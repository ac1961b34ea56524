"""What lies beside a model's weights: tokenizer and configurations. TRL, PEFT and the like stay out."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from sandbox_rl.errors import ModelError, environment_error
from sandbox_rl.training.config import ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

HUB_TIMEOUT_S = 20.0
"""Within which the Hub must say whether it has a model."""


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, checked for what training needs.

    Raises:
        ModelError: not found, no chat template, no end-of-sequence token.
    """
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, settings)
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


def load_config(settings: ModelSettings) -> PretrainedConfig:
    """The configuration of a model, without its weights.

    Raises:
        ModelError: not found.
    """
    config: PretrainedConfig = from_pretrained(AutoConfig, settings)
    return config


def from_pretrained(loader: Any, settings: ModelSettings, **extra: Any) -> Any:
    """What a loader of transformers makes of a model's path.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        _look_for(settings.path, settings.revision)
        return loader.from_pretrained(
            settings.path, revision=settings.revision, trust_remote_code=settings.trust_remote_code, **extra
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise  # nothing is wrong with the files
    except Exception as error:  # libraries raise anything at a model's files, tokenizers a bare Exception
        place = "directory" if Path(settings.path).exists() else "local directory or Hub model"
        known = isinstance(error, OSError | ValueError)
        said = str(error).strip() if known else " ".join(f"{type(error).__name__}: {error}".split())[:300]
        first_line = said.splitlines()[0] if said else type(error).__name__
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
