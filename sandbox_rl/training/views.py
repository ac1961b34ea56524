"""What we read of TRL's trainers and of their settings, as Protocols of ours: TRL itself is untyped.

Nothing else of `training/` names an attribute of TRL's trainers but the subclasses themselves.
`tests/smoke/test_trl_contract.py` holds TRL's trainers against these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

LossInputs = dict[str, torch.Tensor]
"""Inputs of TRL's `compute_loss`: `prompt_ids`, `prompt_mask` (B, P), `completion_ids`, `completion_mask`
(B, C), `advantages` (B,), and where there are any `tool_mask`, `old_per_token_logps`, `ref_per_token_logps`,
`sampling_per_token_logps` (B, C), `importance_sampling_ratio` (B, C) or (B, 1)."""

PerToken = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Log-probs, entropies (B, C), and the auxiliary loss, as TRL's trainer computes them."""

GradNorm = torch.Tensor | float | None
"""As transformers asks for it; None where the engine of DeepSpeed has none."""


class StateView(Protocol):
    """`trainer.state`."""

    global_step: int
    """Updates that are complete."""


class GenerationArgs(Protocol):
    """How TRL's settings say when is sampled and when updated (`generations.py`)."""

    steps_per_generation: int
    num_iterations: int
    gradient_accumulation_steps: int
    generation_batch_size: int
    num_generations: int


class LossArgs(GenerationArgs, Protocol):
    """Settings of the loss (`micro_batches.py`, `sampler_correction.py`)."""

    loss_type: str
    top_entropy_quantile: float
    entropy_coef: float
    use_adaptive_entropy: bool
    vllm_importance_sampling_correction: bool
    vllm_importance_sampling_mode: str
    vllm_importance_sampling_clip_min: float | None
    vllm_importance_sampling_clip_max: float | None


class SamplingArgs(Protocol):
    """How TRL's settings say what is sampled."""

    temperature: float
    top_p: float
    top_k: int | None
    min_p: float | None
    repetition_penalty: float


class SharedArgs(SamplingArgs, Protocol):
    """What the settings of both of TRL's trainers say of a run."""

    seed: int
    max_steps: int
    num_train_epochs: float
    num_generations: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    save_total_limit: int | None


class RewardArgs(Protocol):
    """What the settings make of a group's rewards (`estimator.py`)."""

    reward_weights: Sequence[float] | None
    multi_objective_aggregation: str
    scale_rewards: str


class SyncArgs(SharedArgs, LossArgs, RewardArgs, Protocol):
    """`GRPOConfig`."""

    mask_truncated_completions: bool
    shuffle_dataset: bool


class AsyncArgs(SharedArgs, Protocol):
    """`AsyncGRPOConfig`."""

    max_staleness: int
    token_budget: int


RunArgs = SyncArgs | AsyncArgs
"""TRL's settings of a run, by the mode of its recipe."""


class TrainerView(Protocol):
    """The trainer that a `rollout_func` is called with."""

    @property
    def state(self) -> StateView:
        """How far it is."""
        ...

    @property
    def args(self) -> GenerationArgs:
        """Its settings."""
        ...

    num_generations: int
    """Rollouts of a group; another number while evaluating."""


class ModelView(Protocol):
    """The trainer that updates a model."""

    @property
    def state(self) -> StateView:
        """How far it is."""
        ...

    accelerator: Accelerator
    model: nn.Module
    """Perhaps in wrappers of data parallelism."""
    deepspeed: object | None
    """Its engine, once training has begun with one."""


class PrecisionArgs(Protocol):
    """What transformers' settings say of precision."""

    bf16: bool


class PrecisionView(ModelView, Protocol):
    """A trainer whose precision is settled before it trains (`precision.py`)."""

    @property
    def args(self) -> PrecisionArgs:
        """Its settings."""
        ...

    is_deepspeed_enabled: bool


class LossView(ModelView, Protocol):
    """The trainer that computes a loss."""

    @property
    def args(self) -> LossArgs:
        """Its settings."""
        ...

    temperature: float
    aux_loss_enabled: bool
    is_deepspeed_enabled: bool
    use_vllm: bool
    """Whether the policy is sampled elsewhere."""
    vllm_importance_sampling_correction: bool
    """Read by TRL whenever it scores and whenever it computes a loss."""


RolloutFunc = Callable[[Sequence[str], TrainerView], dict[str, list[Any]]]
"""TRL's `rollout_func`: prompts and the trainer → columns of rows, by name."""
