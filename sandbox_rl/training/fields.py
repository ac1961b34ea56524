"""Pass-through blocks of a recipe: fields of TRL's own config classes, refused with a clear line.

Among them what TRL and transformers take without a word and fail on, or do nothing with, minutes later.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from sandbox_rl.errors import ConfigError


def checked_fields(cls: Any, block: str, fields: Mapping[str, Any]) -> Any:
    """An instance of TRL's config class `cls` from the recipe's `block`.

    Raises:
        ConfigError: an unknown field (the nearest known one is named), or values that `cls` refuses.
    """
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown key '{block}.{name}': {cls.__name__} has no such field{hint}")
    for name, value in fields.items():
        _check_type(cls, block, name, value)
    try:
        return cls(**fields)
    except (ValueError, TypeError, NotImplementedError) as error:
        named = [
            name
            for name, value in fields.items()
            if isinstance(value, str) and str(error).startswith(f"{value} is")
        ]
        where = f"{block}.{named[0]}: {fields[named[0]]!r}, but" if named else f"{block}:"
        raise ConfigError(f"{where} {cls.__name__} refuses these values: {error}") from error


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _check_type(cls: Any, block: str, name: str, value: Any) -> None:
    """Dataclasses take any value for any field; a number that is text fails only deep inside training."""
    simple = _simple_types(_hints(cls).get(name, Any))
    if not simple or (
        isinstance(value, tuple(simple)) and not (isinstance(value, bool) and bool not in simple)
    ):
        return
    if float in simple and isinstance(value, int) and not isinstance(value, bool):
        return
    expected = " or ".join(sorted(kind.__name__ for kind in simple if kind is not type(None)))
    raise ConfigError(f"key '{block}.{name}': {value!r}, expected {expected}")


def _simple_types(hint: Any) -> list[type]:
    """The plain types that a hint admits; empty where it admits more than those."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = (bool, int, float, str, type(None))
    return [part for part in parts if part in plain] if all(part in plain for part in parts) else []


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
