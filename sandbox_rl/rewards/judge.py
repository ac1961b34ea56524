"""A model as judge, behind an OpenAI-compatible chat endpoint (placeholder until written)."""

from __future__ import annotations

from sandbox_rl.rewards.config import JudgeSettings
from sandbox_rl.types import Reward, Task


class Judge:
    """Asks a model."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings

    async def __aenter__(self) -> Judge:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def score(self, task: Task, answer: str) -> Reward:
        return Reward(None, detail="not judged")
