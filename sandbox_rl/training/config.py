"""Settings of the model, the estimator, the warm-up and the course of a training run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sandbox_rl.settings import Settings

__all__ = [
    "EvaluationSettings",
    "LoraSettings",
    "ModelSettings",
    "PolicySettings",
    "WarmupSettings",
]


class LoraSettings(Settings):
    """Low-rank adapters instead of full fine-tuning (peft)."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class ModelSettings(Settings):
    """What is trained."""

    path: str = "tiny"
    """A directory, a Hub id, or `tiny`: a Qwen3 of under a million parameters made on the spot."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    lora: LoraSettings | None = None


class PolicySettings(Settings):
    """The model samples in the trainer's own process: for small models and machines without a GPU."""

    type: Literal["transformers"] = "transformers"
    max_batch: int = Field(64, ge=1)
    """Turns that are sampled together at most."""
    max_delay_s: float = Field(0.05, ge=0)
    """How long a turn waits for others to join its batch."""


class WarmupSettings(Settings):
    """Supervised fine-tuning on successful expert episodes: a policy that cannot call a tool learns nothing.

    The expert is `package.module:function`, given a task and its index and returning the turns to
    play; see `sandbox_rl.training.experts`.
    """

    expert: str = "sandbox_rl.training.experts:arithmetic"
    episodes: int = Field(1_000, ge=1)
    """Training tasks that the expert plays; only successful episodes are kept."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Any field of `trl.SFTConfig`."""


class EvaluationSettings(Settings):
    """Held-out evaluation before, during and after training."""

    tasks: int = Field(200, ge=0)
    """Held-out tasks per evaluation; 0 switches it off."""
    samples: int = Field(1, ge=1)
    """Episodes per task."""
    every_steps: int = Field(0, ge=0)
    """Also after this many updates; 0 means only before and after."""
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
