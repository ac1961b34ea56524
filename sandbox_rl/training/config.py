"""Settings of the model, the estimator, the warm-up and the course of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sandbox_rl.policies.base import Sampling
from sandbox_rl.settings import Settings


class LoraSettings(Settings):
    """Low-rank adapters instead of full fine-tuning (peft)."""

    r: int = Field(16, ge=1)
    """Rank: an adapter of a linear layer has r x (in + out) weights (arXiv 2106.09685)."""
    alpha: int = Field(32, ge=1)
    """Adapters are scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs that an update leaves out."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers that get one: `all-linear`, a regular expression, or the ends of their names."""


class ModelSettings(Settings):
    """What is trained."""

    path: str = "tiny"
    """A directory, a Hub id, or `tiny`: a Qwen3 of under a million parameters made on the spot."""
    revision: str | None = None
    """Of a Hub id: a branch, a tag or a commit; null: the newest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What forward passes, servers and exports compute in; `auto`: what the checkpoint is stored in. What an
    optimizer updates is float32 whatever this says (`sandbox_rl.training.precision`)."""
    trust_remote_code: bool = False
    """Run the code that comes with a checkpoint, with your rights."""
    attn_implementation: str | None = None
    """A kernel by transformers' name, such as `sdpa` or `flash_attention_2`; null: transformers' choice."""
    lora: LoraSettings | None = None
    """Train adapters instead of all weights; `{}` for the defaults below."""
    quantization: Literal["nf4"] | None = None
    """QLoRA (arXiv 2305.14314): adapters on frozen weights of 4 bits, by bitsandbytes."""

    @model_validator(mode="after")
    def _quantization_fits(self) -> ModelSettings:
        if self.quantization is not None and self.lora is None:
            raise ValueError(
                f"quantization {self.quantization!r} without lora, expected both: weights of 4 bits cannot "
                "be trained themselves; add lora: {}"
            )
        return self


class UpdateSettings(Settings):
    """How an update is computed, not what it computes: the gradient stays the same."""

    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens of one forward and backward pass, padding included: the rows of a micro-batch are taken in
    parts, those of like length together, and a longer row alone. None: `grpo.per_device_train_batch_size`
    rows at once. In mode `async` set `grpo.token_budget`."""
    share_prefixes: bool = True
    """What the rows of a forward pass have in common from their beginning, such as the prompt of a group, is
    computed once, where the model can (the log says why it cannot). Mode `async` always does."""


class WarmupSettings(Settings):
    """Supervised fine-tuning on successful expert episodes: a policy that cannot call a tool learns nothing.

    The expert is given a task and the randomness of the episode, and returns the turns to play; see
    `sandbox_rl.training.experts`.
    """

    expert: str = "arithmetic"
    """`arithmetic`, `search`, `mixed`, or `package.module:function` of your own."""
    episodes: int = Field(1_000, ge=1)
    """Training tasks that the expert plays; only successful episodes are kept."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Any field of `trl.SFTConfig`."""


class SuiteSchedule(Settings):
    """A suite that is run on the policy while it is trained."""

    path: str
    """File, relative to the recipe, or the name of a shipped suite such as `offline`."""
    every_steps: int = Field(50, ge=1)
    """After every so many updates, and after the last one."""


class EvaluationSettings(Settings):
    """Held-out evaluation before, during and after training."""

    tasks: int = Field(200, ge=0)
    """Held-out tasks per evaluation; 0 switches it off."""
    samples: int = Field(1, ge=1)
    """Episodes per task."""
    every_steps: int = Field(0, ge=0)
    """Also after this many updates; 0 means only before and after."""
    sampling: Sampling = Sampling()
    """How turns are sampled."""
    suite: SuiteSchedule | None = None
    """Also measured, beside the held-out tasks; its results go to `suites/` in the run's directory."""


class CurriculumSettings(Settings):
    """Which tasks are rolled out. The defaults are the paper's: pass by pass, all-equal groups kept."""

    refill_rounds: int = Field(0, ge=0, le=16)
    """How often groups whose rewards are all equal are replaced by groups of other tasks, within a step.
    Each round makes the step longer by at most one group's longest episode. 0: they are kept."""
    sampling: Literal["uniform", "difficulty"] = "uniform"
    """`difficulty`: tasks that are sometimes solved are drawn more often, by running solve rates."""
    floor: float = Field(0.1, gt=0)
    """Weight of a task that is always or never solved; one that is solved half of the time has 1 more."""
    memory: float = Field(0.5, ge=0, le=1)
    """What earlier groups of a task still count when a new one is in: 1 forgets nothing."""
    domain_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Domain → share of the groups of each step, relative to the others; every domain must be named."""

    @property
    def active(self) -> bool:
        """Whether anything differs from the trainer's own order."""
        return bool(self.refill_rounds or self.domain_weights) or self.sampling != "uniform"


class MetricsSettings(Settings):
    """Where metrics can be read beside `metrics.jsonl` and the trackers of `report_to`."""

    prometheus: int | str | None = None
    """A Prometheus endpoint while the run lasts: a port of this machine only, or `HOST:PORT`."""

    @field_validator("prometheus")
    @classmethod
    def _is_an_address(cls, value: int | str | None) -> int | str | None:
        if value is None:
            return None
        host, colon, port = str(value).rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536 or (colon and not host):
            raise ValueError(f"{value!r}, expected a port, such as 9400, or HOST:PORT")
        return value
