"""Settings of scoring: the `reward:` block of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sandbox_rl.settings import Settings


class JudgeSettings(Settings):
    """A model that judges answers, behind an OpenAI-compatible chat endpoint."""

    base_url: str
    """Address up to and including /v1."""
    model: str
    """Model name that the endpoint knows."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    votes: int = Field(1, ge=1, le=25)
    """Judgements per answer; the majority decides, a tie is a no."""
    temperature: float = Field(0.0, ge=0)
    """Of the judge; above 0 when votes should differ."""
    max_tokens: int = Field(128, ge=8)
    """Cap of one judgement: a verdict needs about 20; a model that thinks first needs more."""
    timeout_s: float = Field(60.0, gt=0)
    """Wall time of one request."""
    retries: int = Field(3, ge=0)
    """Further tries after a failed request, with growing waits."""
    requests_per_second: float = Field(8.0, gt=0)
    """Starts of requests per second, all tasks together."""
    concurrency: int = Field(16, ge=1)
    """Requests in flight."""
    cache_dir: str | None = None
    """Where judgements are kept by content; None keeps them for the run only."""
    fallback: str | None = None
    """Rule-based scorer used while the judge is down; its results carry the part `judge_fallback`. None
    leaves such answers unjudged."""


class RewardSettings(Settings):
    """How answers are scored, and within what bounds."""

    scorer: str | None = None
    """Replaces every task's own scorer: a name or `package.module:function`."""
    composite: dict[str, float] = Field(default_factory=dict)
    """Scorer → weight; the reward is the weighted mean, each scorer's value a part of it. Replaces every
    task's own scorer. `judge` may be among them; the part `judge_fallback` says where its rule stood in."""
    workers: int = Field(2, ge=1)
    """Most scoring processes at once; all but the first start when answers have waited for a second."""
    timeout_s: float = Field(6.0, gt=0)
    """Processor time of one answer; then its process is killed. Waiting counts alike, except for
    a processor."""
    memory_mb: int = Field(1024, ge=256)
    """Memory that one answer may take on top of what a worker has once started, MiB."""
    isolation: Literal["sandbox", "none"] = "sandbox"
    """Where scoring processes run: in sandboxes of their own, or as plain processes of this user, which
    warns at every start since an answer that gets a scorer to run code then runs it on this machine."""
    docker_image: str | None = None
    """An image in whose containers answers are scored where bubblewrap is not available, on the local Docker
    engine; it needs nothing but a root. None takes the image of a `docker` sandbox, if that is the one."""
    max_fault_share: float = Field(0.5, gt=0, le=1)
    """A run stops, with a checkpoint and exit code 3, when more than this share of its last 64 episodes (of
    16 at least) could not be judged."""
    judge: JudgeSettings | None = None
    """The endpoint behind the scorer `judge`."""
