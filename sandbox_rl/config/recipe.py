"""A whole run in one value. Each block is its component's own settings model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from sandbox_rl.config.run import RunSettings
from sandbox_rl.fault_injection.settings import ChaosSettings
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.settings import Settings
from sandbox_rl.tasks.config import DataSettings
from sandbox_rl.training.config import (
    CurriculumSettings,
    EvaluationSettings,
    MetricsSettings,
    UpdateSettings,
    WarmupSettings,
)


class LaunchSettings(Settings):
    """Which processes train together; below a launcher of your own it decides, and what is said here must not
    be something else."""

    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """On each machine; `auto`: one for each CUDA card that is to be seen and that no server is to have for
    itself (`policy.placement`), or one."""
    config: str | None = None
    """What accelerate is told besides: the name of a file in `configs/accelerate`, such as `fsdp2` or
    `zero3`, which divide the model, or a path relative to the working directory."""
    machines: int = Field(1, ge=1)
    """Each runs the same command with its own `machine_rank`."""
    machine_rank: int = Field(0, ge=0)
    """Number of this machine."""
    main_address: str | None = None
    """Host name or address of machine 0, where there are several."""
    main_port: int = Field(0, ge=0, lt=2**16)
    """0: any that is free; several machines need to be told one."""


class Recipe(RunSettings):
    """Everything a run depends on. A recipe file says only what differs from these defaults."""

    mode: Literal["sync", "async"] = "sync"
    """`sync`: rollouts and updates take turns. `async`: updates while rollouts go on, with slightly older
    weights (needs policy.type vllm)."""
    data: DataSettings
    """Where tasks come from."""
    curriculum: CurriculumSettings = CurriculumSettings()
    """Which tasks are rolled out."""
    estimator: Literal["paper", "trl"] = "paper"
    """`paper`: arXiv 2601.16206's estimator; `trl`: the `grpo` block alone decides."""
    grpo: dict[str, Any] = Field(default_factory=dict)
    """Any field of `trl.GRPOConfig`."""
    update: UpdateSettings = UpdateSettings()
    """How the updates are computed."""
    warmup: WarmupSettings | None = None
    """Supervised warm-up from expert episodes."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out evaluation."""
    chaos: ChaosSettings = ChaosSettings()
    """Faults injected into the run's episodes."""
    launch: LaunchSettings = LaunchSettings()
    """The processes that train."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers by the names that transformers knows: tensorboard, wandb, trackio …"""
    metrics: MetricsSettings = MetricsSettings()
    """Other places where metrics can be read."""

    @model_validator(mode="after")
    def _async_fits(self) -> Recipe:
        if self.mode == "async":
            if not isinstance(self.policy, VLLMSettings):
                raise ValueError(
                    f"mode 'async' with policy.type {self.policy.type!r}, expected 'vllm': a model in the "
                    "trainer's own process cannot sample while it is updated"
                )
            if self.model.quantization is not None:
                raise ValueError(
                    f"mode 'async' with model.quantization {self.model.quantization!r}, expected none: TRL's "
                    "asynchronous trainer loads the model itself; set mode: sync"
                )
            if self.policy.sleep is True:
                raise ValueError("mode 'async' with policy.sleep, expected false: it samples all the time")
            if self.update.micro_batch_tokens is not None:
                raise ValueError(
                    f"mode 'async' with update.micro_batch_tokens {self.update.micro_batch_tokens}, expected "
                    "none: rows are packed there; set grpo.token_budget"
                )
            if self.curriculum.sampling != "uniform" or self.curriculum.domain_weights:
                raise ValueError(
                    "mode 'async' with curriculum.sampling or domain_weights, expected neither: groups come "
                    "in passes over the data; set mode: sync, or leave out all but refill_rounds"
                )
        return self

    @model_validator(mode="after")
    def _early_stop_fits(self) -> Recipe:
        share = self.rollout.over_sample
        if share and self.mode == "async":
            raise ValueError(
                f"mode 'async' with rollout.over_sample {share}, expected 0: nothing waits for a slow group"
            )
        if share and self.curriculum.active:
            raise ValueError(
                f"rollout.over_sample {share} with a curriculum, expected one of the two: groups that wait "
                "come back by number, in passes over the data; set rollout.over_sample: 0, or drop the block"
            )
        return self

    @property
    def sources(self) -> Sequence[object]:
        """Where tasks come from."""
        return self.data.sources


def resolved(recipe: Recipe) -> str:
    """The recipe with all defaults as YAML; loading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
