"""Settings of the engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sandbox_rl.settings import Settings

OverlongPolicy = Literal["zero", "score", "mask"]


class RolloutSettings(Settings):
    """How many episodes run at once and what happens to those that fail."""

    concurrency: int = Field(64, ge=1)
    """Episodes in flight. More than the engine's slots (`max-num-seqs`) hide the tools' time."""
    retries: int = Field(2, ge=0)
    """Further tries, each in a fresh sandbox, after an infrastructure fault."""
    backoff_s: float = Field(1.0, ge=0)
    """First wait before a retry; doubles each time, with jitter."""
    overlong: OverlongPolicy = "zero"
    """Reward of an episode that ran out of turns or tokens: 0 (the paper's choice for training), scored, or
    masked: out of its group's baseline and without any gradient, the KL term's (`grpo.beta`) included; what
    the loss is divided by then is said at `training.estimator.to_rows` (overlong filtering, arXiv
    2503.14476)."""
    timed_out: OverlongPolicy = "zero"
    """The same for an episode that ran out of time."""
    over_sample: float = Field(0.0, ge=0, le=1)
    """Groups that a synchronous step starts beyond those it trains on, as a share of them. The slowest are
    cancelled and done again later, all together in a step that waits (`rollout/over_sampling.py`). 0: off."""
