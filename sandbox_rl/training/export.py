"""A trained model as a directory that `from_pretrained` and vLLM load."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import sandbox_rl

__all__ = ["export_model"]


def export_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    recipe: str,
    base_model: str,
    datasets: list[str],
    results: Mapping[str, Any],
    licence: str = "apache-2.0",
    merge_lora: bool = True,
) -> Path:
    """Write weights (safetensors), tokenizer, chat template, generation config and model card.

    The directory appears whole or not at all: it is written beside itself and renamed.

    Args:
        recipe: the resolved recipe as YAML, quoted in the card.
        results: metric name → value, quoted in the card.
        merge_lora: write the merged model; otherwise the adapter alone.
    """
    if merge_lora and isinstance(model, PeftModel):
        model = model.merge_and_unload()
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, safe_serialization=True)
    tokenizer.save_pretrained(partial)
    generation = getattr(model, "generation_config", None) or GenerationConfig()
    generation.save_pretrained(partial)
    card = _card(recipe=recipe, base_model=base_model, datasets=datasets, results=results, licence=licence)
    card.save(partial / "README.md")
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)
    return directory


def _card(
    *, recipe: str, base_model: str, datasets: list[str], results: Mapping[str, Any], licence: str
) -> ModelCard:
    data = ModelCardData(
        library_name="transformers",
        license=licence,
        tags=["reinforcement-learning", "grpo", "sandbox_rl"],
        base_model=base_model if "/" in base_model and not Path(base_model).exists() else None,
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in results.items())
    body = f"""---
{data.to_yaml()}
---

# A model trained in sandboxes

Trained with sandbox_rl {sandbox_rl.__version__} by reinforcement learning: the model works on each
task in a code sandbox with the tools `execute_bash`, `str_replace_editor` and `submit`, and the answer
file is rewarded.

- Starting point: `{base_model}`
- Data: {", ".join(f"`{name}`" for name in datasets)}
- Licence: {licence} (check that of the starting point and of the data)

## Results

| metric | value |
| --- | --- |
{rows}

## Recipe

```yaml
{recipe.rstrip()}
```
"""
    return ModelCard(body, ignore_metadata_errors=False)
