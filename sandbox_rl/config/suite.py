"""A suite in one value: what is evaluated and under which budgets. A recipe without training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from sandbox_rl.chat.config import ChatSettings
from sandbox_rl.config.load import load_settings
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.config.source import read_source
from sandbox_rl.episode import EpisodeSettings
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.sources.config import SuiteSource
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.config import PolicySettings, TransformersSettings
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rollout import RolloutSettings
from sandbox_rl.sandboxes.config import EmbeddedSettings, PoolSettings, SandboxSettings
from sandbox_rl.settings import Settings
from sandbox_rl.tasks.config import DataSettings, HubSource, ReasoningGymSource, TableSource
from sandbox_rl.training.config import ModelSettings

__all__ = ["PartSettings", "Suite", "find_suite", "is_suite", "load_suite"]


class PartSettings(Settings):
    """One line of the results."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """What the results call it."""
    source: SuiteSource
    """Where its tasks come from; all of them are evaluated, nothing is held out."""
    tasks: int | None = Field(None, ge=1)
    """At most so many of them."""
    samples: int = Field(1, ge=1)
    """Episodes per task."""
    required: bool = True
    """False: where its source cannot be had, the part is left out and the results say so."""


class Suite(Settings):
    """Everything an evaluation depends on, but the model. A file says only what differs from the defaults."""

    name: str = "suite"
    """What results call it."""
    output_dir: str = "runs"
    """Where results go, relative to the working directory, unless `--output` is given."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of sampling, and of which tasks are taken where `tasks` limits them."""
    parts: tuple[PartSettings, ...] = Field(min_length=1)
    """At least one."""
    limit: int | None = Field(None, ge=1)
    """At most so many tasks of each part, for trying things out."""
    model: ModelSettings = ModelSettings()
    """dtype and the like; `--model` replaces the path."""
    chat: ChatSettings = ChatSettings()
    """How a local model is talked to."""
    policy: PolicySettings = TransformersSettings()
    """What samples the turns of a local model: this process, or a vLLM server of ours."""
    prompts: tuple[str, ...] = ()
    """Directories of prompt sets, relative to the suite; looked at before the package's own."""
    sandbox: SandboxSettings = EmbeddedSettings()
    """Where the policy's commands run."""
    pool: PoolSettings = PoolSettings()
    """How sandboxes are kept ready."""
    episode: EpisodeSettings = EpisodeSettings()
    """The budgets of an episode."""
    rollout: RolloutSettings = RolloutSettings()
    """How episodes run side by side."""
    reward: RewardSettings = RewardSettings()
    """How answers are scored."""
    sampling: Sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20)
    """How turns are sampled."""

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("expected letters, digits, '.', '_' and '-', as in a directory's name")
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> Suite:
        names = [part.name for part in self.parts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two parts are named {twice[0]!r}; give each its own name")
        return self

    def recipe(self) -> Recipe:
        """The recipe whose episodes are those of this suite; its data only name domains and scorers."""
        return Recipe(
            name=self.name,
            output_dir=self.output_dir,
            seed=self.seed,
            model=self.model,
            chat=self.chat,
            policy=self.policy,
            prompts=self.prompts,
            sandbox=self.sandbox,
            pool=self.pool,
            episode=self.episode,
            rollout=self.rollout,
            reward=self.reward,
            data=DataSettings(sources=tuple(_named(part) for part in self.parts)),
        )


def _named(part: PartSettings) -> ReasoningGymSource | TableSource | HubSource:
    source = part.source
    if isinstance(source, ReasoningGymSource | TableSource | HubSource):
        return source.model_copy(update={"name": part.name})
    scorer = getattr(source, "scorer", "exact")
    return TableSource(type="table", name=part.name, path=source.type, domain=source.domain, scorer=scorer)


def load_suite(path: Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite; its relative paths are relative to its own directory.

    Raises:
        ConfigError: one line naming file and line (or the override), key, value and what was expected.
    """
    suite = load_settings(Suite, path, overrides)
    base = path.resolve().parent
    parts = tuple(
        part.model_copy(
            update={"source": part.source.model_copy(update={"path": str(base / part.source.path)})}
        )
        if isinstance(part.source, TableSource)
        else part
        for part in suite.parts
    )
    return suite.model_copy(
        update={"parts": parts, "prompts": tuple(str(base / directory) for directory in suite.prompts)}
    )


def is_suite(path: Path) -> bool:
    """Whether a file is a suite and not a recipe.

    Raises:
        ConfigError: it cannot be read.
    """
    return "parts" in read_source(path).values


def find_suite(name: str | Path) -> Path:
    """The file of that path, else the shipped suite of that name, such as `offline`.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    package = Path(__file__).parents[1]
    # In a wheel the configs lie inside the package, in a checkout beside it.
    folders = [package / "configs" / "suites", package.parent / "configs" / "suites"]
    for folder in folders:
        if path.name == str(name) and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise ConfigError(
        f"{str(name)!r}: no such file, expected a recipe, a suite, or one of the shipped suites "
        f"({', '.join(known)})"
    )
