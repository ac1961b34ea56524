"""A trained model as a directory that `from_pretrained` and vLLM load."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import sandbox_rl
from sandbox_rl.chat.turn_ends import TurnEnds
from sandbox_rl.outputs import new_directory
from sandbox_rl.training.models import end_turns_with
from sandbox_rl.training.publication.merge import checkpoint_tensors, divided

LICENCE = "apache-2.0"
"""Of the exported model, as its card says until a person changes it."""


def whole_weights(
    model: PreTrainedModel | PeftModel, *, dtype: torch.dtype, keep: bool
) -> dict[str, torch.Tensor] | None:
    """The weights of a model that is sharded or quantised, adapters merged, in host memory.

    Every process takes part in gathering them.

    Args:
        dtype: of the result, but for what the architecture keeps in float32.
        keep: on the process that writes them; elsewhere the result is empty.

    Returns:
        Tensors by their names in a checkpoint, or None if the model can be saved as it is.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    quantized = getattr(base, "quantization_method", None) is not None
    if not quantized and not any(map(divided, model.parameters())):
        return None
    wide = _kept_wide(base)
    return {
        name: whole.to("cpu", torch.float32 if wide(name) else dtype)
        for name, whole in checkpoint_tensors(model)
        if keep
    }


def export_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    ends: TurnEnds,
    dtype: torch.dtype,
    recipe: str,
    base_model: str,
    datasets: list[str],
    results: Mapping[str, Any],
    merge_lora: bool = True,
    weights: Mapping[str, torch.Tensor] | None = None,
    what: str = "export",
) -> Path:
    """Write weights (safetensors), tokenizer, chat template, generation config and model card.

    The directory appears whole or not at all, with the rights that the user's mask gives. The model is
    rounded in place, so it is of no use for training afterwards.

    Args:
        ends: where the policy's turns ended; the exported model ends its own there.
        dtype: of what is written, but for weights that the architecture keeps in float32, and adapters.
        recipe: the resolved recipe as YAML, quoted in the card.
        results: metric name → value, quoted in the card.
        merge_lora: write the merged model; otherwise the adapter alone.
        weights: of `whole_weights`, where the model's own are shards or quantised.
        what: the option that named the directory, for messages.

    Raises:
        ConfigError: the directory exists.
    """
    if weights is not None and isinstance(model, PeftModel):
        model = model.get_base_model()
    elif merge_lora and isinstance(model, PeftModel):
        model = model.merge_and_unload()
    if weights is not None:
        model = _skeleton(model, dtype)
    elif not isinstance(model, PeftModel):
        _round(model, dtype)
    end_turns_with(model, ends)
    card = _card(recipe=recipe, base_model=base_model, datasets=datasets, results=results)
    with new_directory(directory, what) as partial:
        model.save_pretrained(partial, state_dict=None if weights is None else dict(weights))
        tokenizer.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        card.save(partial / "README.md")
    return directory


def _is_local(path: str) -> bool:
    return os.path.isabs(path) or path.startswith((".", "~")) or Path(path).exists()


def _without_local_paths(recipe: str) -> str:
    """The recipe with absolute paths cut to their last part: a card is read by everybody."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shown(inner) for inner in value]
        return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value

    try:
        values = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return recipe
    return yaml.safe_dump(shown(values), sort_keys=False, allow_unicode=True) if values else recipe


def _skeleton(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same architecture without quantisation and without memory for weights."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A sharded module is of a class that torch made on the spot.
    cls: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        plain = cls(config)
    plain.generation_config = model.generation_config
    return plain.to(dtype)


def _kept_wide(model: PreTrainedModel) -> Callable[[str], bool]:
    """Which weights the architecture keeps in float32 whatever it is loaded in."""
    kept = {
        name
        for field in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for name in getattr(model, field, None) or ()
    }
    return lambda name: any(part in kept for part in name.split("."))


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    wide = _kept_wide(model)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not wide(name):
            parameter.data = parameter.data.to(dtype)


def _card(*, recipe: str, base_model: str, datasets: list[str], results: Mapping[str, Any]) -> ModelCard:
    start = Path(base_model).name if _is_local(base_model) else base_model
    data = ModelCardData(
        library_name="transformers",
        license=LICENCE,
        tags=["reinforcement-learning", "grpo", "sandbox_rl"],
        base_model=base_model if "/" in base_model and not _is_local(base_model) else None,
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in results.items())
    body = f"""---
{data.to_yaml()}
---

# A model trained in sandboxes

Trained with sandbox_rl {sandbox_rl.__version__} by reinforcement learning: the model works on each
task in a code sandbox with the tools `execute_bash`, `str_replace_editor` and `submit`, and the answer
file is rewarded.

- Starting point: `{start}`
- Data: {", ".join(f"`{name}`" for name in datasets)}
- Licence: {LICENCE} (check that of the starting point and of the data)

## Results

| metric | value |
| --- | --- |
{rows}

## Recipe

```yaml
{_without_local_paths(recipe).rstrip()}
```
"""
    return ModelCard(body, ignore_metadata_errors=False)
