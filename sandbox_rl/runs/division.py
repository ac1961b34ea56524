"""How the processes of a run divide its model, and what does not go with that."""

from __future__ import annotations

import os
from dataclasses import dataclass

from accelerate import PartialState

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.runs.launch import Launch


@dataclass(frozen=True, slots=True)
class Division:
    """The processes that train.

    Args:
        way: `FSDP` or `DEEPSPEED`; None where each holds the whole model.
        ranks: on each machine.
        processes: on all of them.
    """

    way: str | None
    ranks: int
    processes: int

    @property
    def shards(self) -> int:
        """Processes that the weights are divided over."""
        return 1 if self.way is None else self.processes


def division_of(launch: Launch | None) -> Division:
    """Of the processes that a launch would start; for None, of those that there are."""
    if launch is not None:
        return Division(launch.way, launch.each, launch.each * launch.settings.machines)
    processes = PartialState().num_processes
    found = [way for way in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{way}") == "true"]
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return Division(found[0] if found else None, ranks, processes)


def check_division(recipe: Recipe, division: Division) -> None:
    """Refuse what cannot work with a divided model.

    Raises:
        ConfigError: the policy samples from the model itself, or updates take several passes under DeepSpeed.
    """
    if division.way is None:
        return
    if isinstance(recipe.policy, TransformersSettings):
        raise ConfigError(
            f"policy.type: 'transformers', but {division.processes} processes divide the model "
            f"({division.way}), and none can sample from it alone; set policy.type=vllm, or leave "
            "launch.config out"
        )
    if division.way == "DEEPSPEED" and recipe.mode == "async":
        raise ConfigError(
            "mode: 'async' computes an update in several passes, and DeepSpeed would step after each; set "
            "launch.config=fsdp2, or mode=sync"
        )
    if division.way == "DEEPSPEED" and recipe.update.micro_batch_tokens is not None:
        raise ConfigError(
            f"update.micro_batch_tokens: {recipe.update.micro_batch_tokens}, expected none with DeepSpeed, "
            "which would step after each part; lower grpo.per_device_train_batch_size, or set "
            "launch.config=fsdp2"
        )
