"""What a recipe and a suite share: who acts, where, within which budgets, and how answers are scored."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from sandbox_rl.agents.base import EpisodeSettings
from sandbox_rl.chat.config import ChatSettings
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import PolicySettings, TransformersSettings
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.sandboxes.config import EmbeddedSettings, PoolSettings, SandboxSettings
from sandbox_rl.settings import Settings
from sandbox_rl.tools.toolbox import OUR_TOOLS, make_toolbox
from sandbox_rl.training.config import ModelSettings


def _known_tools(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse here, with the place in the file, what `make_toolbox` would refuse."""
    try:
        make_toolbox(names)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return names


ToolNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known_tools)]
"""Tools by name or import path."""


class AgentSettings(Settings):
    """The blocks that a model at work in a sandbox depends on, also where nothing is scored."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Of data order, sampling, weights of a new model and the trainer."""
    model: ModelSettings = ModelSettings()
    """What is trained, evaluated or asked."""
    chat: ChatSettings = ChatSettings()
    """The format of the conversation with the model."""
    tools: ToolNames = OUR_TOOLS
    """What the policy can call: names of ours, or `package.module:tool` of your own."""
    prompts: tuple[str, ...] = ()
    """Directories of prompt sets, relative to the file; looked at before the package's own."""
    sandbox: SandboxSettings = EmbeddedSettings()
    """Where the policy's commands run."""
    episode: EpisodeSettings = EpisodeSettings()
    """The budgets of an episode."""


class RunSettings(AgentSettings):
    """The blocks that episodes depend on, whatever they are run for."""

    name: str = "run"
    """What results call it, and the directory of a run below `output_dir`."""
    output_dir: str = "runs"
    """Where results, runs and cached warm-ups go, relative to the working directory."""
    policy: PolicySettings = TransformersSettings()
    """What samples the turns: this process, or vLLM servers."""
    modules: tuple[str, ...] = (".",)
    """Directories in which modules of your own are found, relative to the file, besides the Python path."""
    pool: PoolSettings = PoolSettings()
    """How sandboxes are kept ready."""
    rollout: RolloutSettings = RolloutSettings()
    """How episodes run side by side."""
    reward: RewardSettings = RewardSettings()
    """How answers are scored."""

    @property
    @abstractmethod
    def sources(self) -> Sequence[object]:
        """Where tasks come from: settings of classes of ours or of a user's own."""

    @property
    def scorers(self) -> list[str]:
        """The scorers that the tasks name; generated sources choose theirs task by task."""
        return sorted({getattr(source, "scorer", "exact") for source in self.sources})

    @property
    def answer_packages(self) -> tuple[str, ...]:
        """Import names of packages, but this one, from which tasks come or by which answers are scored."""
        names = (*self.scorers, self.reward.scorer or "", *self.reward.composite)
        modules = [*(n for n in names if ":" in n), *(type(source).__module__ for source in self.sources)]
        tops = {module.partition(":")[0].partition(".")[0] for module in modules}
        return tuple(sorted(tops - {__package__.partition(".")[0]}))

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("expected letters, digits, '.', '_' and '-', as in a directory's name")
        return value
