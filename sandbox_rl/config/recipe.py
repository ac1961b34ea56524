"""A whole run in one value. Each block is its component's own settings model."""

from __future__ import annotations

import re
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from sandbox_rl.chat.config import ChatSettings
from sandbox_rl.episode import EpisodeSettings
from sandbox_rl.policies.config import PolicySettings, TransformersSettings, VLLMSettings
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rollout import RolloutSettings
from sandbox_rl.sandboxes.config import EmbeddedSettings, PoolSettings, SandboxSettings
from sandbox_rl.settings import Settings
from sandbox_rl.tasks.config import DataSettings
from sandbox_rl.training.config import (
    CurriculumSettings,
    EvaluationSettings,
    ModelSettings,
    UpdateSettings,
    WarmupSettings,
)

__all__ = ["Recipe", "resolved"]


class Recipe(Settings):
    """Everything a run depends on. A recipe file says only what differs from these defaults."""

    name: str = "run"
    """Directory of the run below `output_dir`."""
    output_dir: str = "runs"
    """Where runs and cached warm-ups go, relative to the working directory."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of data order, sampling, weights of a new model and the trainer."""
    model: ModelSettings = ModelSettings()
    """What is trained."""
    chat: ChatSettings = ChatSettings()
    """How the model is talked to."""
    policy: PolicySettings = TransformersSettings()
    """What samples the turns."""
    mode: Literal["sync", "async"] = "sync"
    """`sync`: rollouts and updates take turns. `async`: updates while rollouts go on, with slightly older
    weights (needs policy.type vllm)."""
    data: DataSettings
    """Where tasks come from."""
    prompts: tuple[str, ...] = ()
    """Directories of prompt sets, relative to the recipe; looked at before the package's own."""
    sandbox: SandboxSettings = EmbeddedSettings()
    """Where the policy's commands run."""
    pool: PoolSettings = PoolSettings()
    """How sandboxes are kept ready."""
    episode: EpisodeSettings = EpisodeSettings()
    """The budgets of an episode."""
    rollout: RolloutSettings = RolloutSettings()
    """How episodes run side by side."""
    curriculum: CurriculumSettings = CurriculumSettings()
    """Which tasks are rolled out."""
    reward: RewardSettings = RewardSettings()
    """How answers are scored."""
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
    report_to: tuple[str, ...] = ("tensorboard",)
    """Trackers by the names that transformers knows: tensorboard, wandb, trackio …"""

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
            if self.policy.sleep:
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

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("expected letters, digits, '.', '_' and '-', as in a directory's name")
        return value


def resolved(recipe: Recipe) -> str:
    """The recipe with all defaults as YAML; loading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
