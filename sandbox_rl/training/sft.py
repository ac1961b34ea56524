"""Supervised fine-tuning on the action tokens of recorded episodes, by TRL's `SFTTrainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sandbox_rl.errors import ConfigError
from sandbox_rl.training.fields import checked_fields
from sandbox_rl.training.precision import settle_precision
from sandbox_rl.types import Trajectory

IGNORE = -100
"""Label of a token that is not trained on, by PyTorch's convention."""


def sft_rows(trajectories: Sequence[Trajectory]) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` per episode, shape (P + T,): only sampled tokens are labels."""
    rows = []
    for trajectory in trajectories:
        prompt, completion = list(trajectory.prompt_ids), list(trajectory.completion_ids)
        labels = [
            token if sampled else IGNORE
            for token, sampled in zip(completion, trajectory.action_mask, strict=True)
        ]
        rows.append({"input_ids": prompt + completion, "labels": [IGNORE] * len(prompt) + labels})
    return rows


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, list[int]]],
    *,
    output_dir: Path,
    fields: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype = torch.float32,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Train `model` in place; returns the last logged loss, of fewer updates than `logging_steps` their mean.

    Args:
        fields: any of `trl.SFTConfig`, on top of our defaults.
        dtype: what is computed in; the weights are trained in float32.

    Raises:
        ConfigError: no rows, or a field that SFTConfig does not know or refuses.
    """
    if not rows:
        raise ConfigError("warmup: no expert episode was successful, so there is nothing to learn from")
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 10,
        "max_length": None,
        "activation_checkpointing": False,
        "seed": seed,
        "data_seed": seed,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": not torch.cuda.is_available(),  # or bf16 is refused there
    }
    args = checked_fields(SFTConfig, "warmup.sft", defaults | dict(fields))
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    settle_precision(trainer)
    trainer.remove_callback(PrinterCallback)
    mean = trainer.train().training_loss
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1] if losses else mean)
