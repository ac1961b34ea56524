"""What TRL and transformers take without a word and fail on, or do nothing with, minutes later."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from sandbox_rl.errors import ConfigError

__all__ = ["check_numbers", "check_trackers"]

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")
"""Those of TRL 1.16, which complains of others in the first loss only."""

_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "num_generations": 2,
    "generation_batch_size": 1,
    "save_total_limit": 2,
    "learning_rate": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "warmup_steps": 0,
    "beta": 0.0,
    "epsilon": 0.0,
    "epsilon_high": 0.0,
    "token_budget": 1,
    "max_staleness": 0,
}
_ABOVE = {"save_steps": 0, "logging_steps": 0, "num_train_epochs": 0, "adam_epsilon": 0, "temperature": 0}
_BELOW_ONE = ("warmup_ratio", "adam_beta1", "adam_beta2")

_MAY_BE_NULL = ("steps_per_generation", "generation_batch_size", "save_total_limit", "epsilon_high")


def check_numbers(block: Mapping[str, Any]) -> None:
    """Refuse numbers of the recipe's `grpo` block that cannot be meant.

    Raises:
        ConfigError: the field.
    """
    if (loss := block.get("loss_type", "dapo")) not in LOSS_TYPES:
        raise ConfigError(f"grpo.loss_type: {loss!r}, expected one of {', '.join(LOSS_TYPES)}")
    known = {*_AT_LEAST, *_ABOVE, *_BELOW_ONE, "max_steps"}.difference(_MAY_BE_NULL)
    for name, value in block.items():
        if value is None and name in known:
            raise ConfigError(f"grpo.{name}: null, expected a number; give one, or leave it out")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        expected = ""
        if not math.isfinite(value):
            expected = "a finite number"
        elif value < _AT_LEAST.get(name, -math.inf):
            expected = f"at least {_AT_LEAST[name]:g}"
        elif value <= _ABOVE.get(name, -math.inf):
            expected = f"more than {_ABOVE[name]}"
        elif name in _BELOW_ONE and not 0 <= value <= 1:
            expected = "0 to 1"
        elif name == "max_steps" and (value == 0 or value < -1):
            expected = "at least 1, or -1 for num_train_epochs"
        if expected:
            raise ConfigError(f"grpo.{name}: {value}, expected {expected}; change it, or leave it out")


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that transformers does not know or that are not installed.

    Raises:
        ConfigError: the tracker.
    """
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(INTEGRATION_TO_CALLBACK)}"
            raise ConfigError(f"report_to: {name!r} is no tracker that transformers knows, {known}")
        if name not in get_available_reporting_integrations():
            raise ConfigError(
                f"report_to: {name!r} is not installed; pip install {name.replace('_', '-')}, or drop it"
            )
