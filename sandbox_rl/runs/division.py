"""How the processes of a run divide its model, and what does not go with that."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.training.checkpoints import division_of_checkpoint

WAYS = ("FSDP", "DEEPSPEED")
"""As accelerate names them: FSDP2, and ZeRO-3."""
WHOLE = ("MULTI_GPU", "NO")
"""Of a configuration whose processes each hold the whole model."""


@dataclass(frozen=True, slots=True)
class Way:
    """What a configuration of accelerate says about the model.

    Args:
        name: one of `WAYS`; None where each process holds the whole model.
        offloads: whether DeepSpeed keeps the optimizer in the host's memory.
    """

    name: str | None = None
    offloads: bool = False


def way_of(config: Path) -> Way:
    """Of a file, as accelerate's own launcher reads it.

    Raises:
        ConfigError: it cannot be read, or is for something else.
    """
    try:
        told = load_config_from_file(str(config))
        kind = str(getattr(told.distributed_type, "value", told.distributed_type))
        zero = _zero(told.deepspeed_config) if kind == "DEEPSPEED" else {}
    except Exception as error:  # of the file's form, which accelerate takes apart without looking
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"launch.config: {config} is no configuration of accelerate's ({type(error).__name__}: {said}); "
            "make one by `accelerate config`, or set launch.config=fsdp2"
        ) from error
    if kind == "DEEPSPEED" and zero["stage"] != 3:
        raise ConfigError(
            f"launch.config: {config} is ZeRO stage {zero['stage']}, expected 3; set zero_stage: 3, or "
            "launch.config=fsdp2"
        )
    if kind == "FSDP":
        return Way(kind)
    if kind == "DEEPSPEED":
        return Way(kind, offloads=zero["offloads"])
    if kind in WHOLE:
        return Way()
    raise ConfigError(
        f"launch.config: {config} has distributed_type {kind}, expected one of {', '.join(WAYS + WHOLE)}; "
        "set launch.config=fsdp2, or leave it out"
    )


def way_here(environment: Mapping[str, str]) -> Way:
    """Of the launcher that has started this process."""
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        device = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        return Way("DEEPSPEED", offloads=device != "none")
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        return Way("FSDP")
    return Way()


def _zero(block: dict[str, Any]) -> dict[str, Any]:
    """Stage, and whether the optimizer is offloaded, there or in DeepSpeed's own file."""
    if file := block.get("deepspeed_config_file"):
        own = json.loads(Path(file).read_text())["zero_optimization"]
        device = own.get("offload_optimizer", {}).get("device", "none")
        return {"stage": own.get("stage"), "offloads": device != "none"}
    device = block.get("offload_optimizer_device") or "none"
    return {"stage": block.get("zero_stage"), "offloads": device != "none"}


@dataclass(frozen=True, slots=True)
class Division:
    """The processes that train.

    Args:
        way: how they divide the model.
        ranks: on each machine.
        processes: on all of them.
    """

    way: Way
    ranks: int
    processes: int

    @property
    def divides(self) -> bool:
        """Whether no process has the whole model."""
        return self.way.name is not None

    @property
    def shards(self) -> int:
        """Processes that the weights are divided over."""
        return self.processes if self.divides else 1

    @property
    def readers(self) -> int:
        """Processes of a machine that have the whole model in its memory while it is loaded.

        Of ZeRO-3 one reads it and the others get their parts; FSDP's all read it, whatever
        `fsdp_cpu_ram_efficient_loading` says (both as of transformers 5.24).
        """
        return 1 if self.way.name == "DEEPSPEED" else self.ranks


def division_here() -> Division:
    """Of the processes that there are."""
    processes = PartialState().num_processes
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return Division(way_here(os.environ) if processes > 1 or _alone() else Way(), ranks, processes)


def _alone() -> bool:
    """Whether a launcher has started this process and no other: DeepSpeed offloads for one, too."""
    return os.environ.get("WORLD_SIZE") == "1"


def check_division(recipe: Recipe, division: Division) -> None:
    """Refuse what cannot work with a divided model.

    Raises:
        ConfigError: the policy samples from the model itself, or updates take several passes under DeepSpeed.
    """
    if not division.divides:
        return
    if isinstance(recipe.policy, TransformersSettings):
        many = f"{division.processes} processes divide" if division.processes > 1 else "one process divides"
        whole = "leave launch.config out" if recipe.launch.config else "have your launcher leave it whole"
        raise ConfigError(
            f"policy.type: 'transformers', but {many} the model "
            f"({division.way.name}), and none can sample from it alone; set policy.type=vllm, or {whole}"
        )
    if division.way.name == "DEEPSPEED" and recipe.mode == "async":
        raise ConfigError(
            "mode: 'async' computes an update in several passes, and DeepSpeed would step after each; set "
            "launch.config=fsdp2, or mode=sync"
        )
    if division.way.name == "DEEPSPEED" and recipe.update.micro_batch_tokens is not None:
        raise ConfigError(
            f"update.micro_batch_tokens: {recipe.update.micro_batch_tokens}, expected none with DeepSpeed, "
            "which would step after each part; lower grpo.per_device_train_batch_size, or set "
            "launch.config=fsdp2"
        )


def check_checkpoint(checkpoint: Path | None, division: Division) -> None:
    """Refuse to go on from what was saved by processes that divided the model in another way.

    Its weights or its optimizer's state would not be found, in part without a word.

    Raises:
        ConfigError: names the way that fits.
    """
    if checkpoint is None:
        return
    saved, parts = division_of_checkpoint(checkpoint)
    now = division.way.name
    if saved != now:
        names = {
            "FSDP": "launch.config=fsdp2" + " on two cards or more" * (division.processes == 1),
            "DEEPSPEED": "launch.config=zero3",
            None: "launch.config=null",
        }
        how = {"FSDP": "divided by FSDP", "DEEPSPEED": "divided by DeepSpeed", None: "whole on each process"}
        raise ConfigError(
            f"--resume: {checkpoint} was saved with the model {how[saved]}, and now it is {how[now]}, "
            f"expected the same; set {names[saved]}, or start a run of its own from an export"
        )
    if parts is not None and parts != division.processes:
        raise ConfigError(
            f"--resume: {checkpoint} holds the optimizer in {parts} parts, one for each of DeepSpeed's "
            f"processes, but there are {division.processes} now; set launch.processes so that they are "
            f"{parts}"
        )
