"""What an assistant depends on: the parts of a recipe that matter without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from sandbox_rl.chat.config import ChatSettings
from sandbox_rl.config.load import load_recipe, load_settings
from sandbox_rl.config.run import ToolNames
from sandbox_rl.config.shipped import find_recipe
from sandbox_rl.episode import EpisodeSettings
from sandbox_rl.policies.base import Sampling
from sandbox_rl.registry import shipped
from sandbox_rl.sandboxes.config import EmbeddedSettings, SandboxSettings
from sandbox_rl.settings import Settings
from sandbox_rl.tools.toolbox import OUR_TOOLS
from sandbox_rl.training.config import ModelSettings


class AssistantSettings(Settings):
    """How `sandbox-rl run` works. Budgets hold for each message of the user."""

    model: ModelSettings = ModelSettings()
    """Loaded in this process, unless an endpoint is named."""
    chat: ChatSettings = ChatSettings()
    """How the conversation is rendered."""
    tools: ToolNames = OUR_TOOLS
    """What the model can call, as in a recipe."""
    prompts: tuple[str, ...] = ()
    """Directories of prompt sets, looked at before the package's own."""
    sandbox: SandboxSettings = EmbeddedSettings()
    """Where commands run."""
    episode: EpisodeSettings = EpisodeSettings()
    """The budgets of one exchange."""
    sampling: Sampling = Sampling()
    """How turns are sampled."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the sampling."""
    max_input_mb: float = Field(64.0, gt=0)
    """Most MiB of the user's files."""
    max_output_mb: float = Field(64.0, gt=0)
    """Most MiB that are fetched from the sandbox."""


def load_assistant(
    recipe: Path | None, overrides: Sequence[str], *, network: str | None = None, model: str | None = None
) -> AssistantSettings:
    """Settings out of a recipe, or the package's own; overrides belong to whichever it is.

    Args:
        network: "off", "full" or hosts separated by commas; None as the settings say.
        model: directory or Hub id; None as the settings say.

    Raises:
        ConfigError: as `config.load.load_settings`.
    """
    settings = _load(recipe, overrides)
    if network is not None:
        # One sandbox is made on this machine, also where a recipe has a cluster.
        block = "sandbox.node" if settings.sandbox.type == "ray" else "sandbox"
        listed = network not in ("off", "full")
        chosen = [
            f"{block}.network={'allowlist' if listed else network}",
            f"{block}.allowlist={json.dumps(network.split(',') if listed else [])}",
        ]
        settings = _load(recipe, [*overrides, *chosen])
    if model is None:
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"path": model})})


def _load(recipe: Path | None, overrides: Sequence[str]) -> AssistantSettings:
    if recipe is None:
        return load_settings(AssistantSettings, shipped("configs/assistant.yaml"), overrides)
    of = load_recipe(find_recipe(recipe), overrides)
    return AssistantSettings(
        model=of.model,
        chat=of.chat,
        tools=of.tools,
        prompts=of.prompts,
        sandbox=of.sandbox,
        episode=of.episode,
        sampling=of.evaluation.sampling,  # turns are sampled as in its evaluation
        seed=of.seed,
        max_input_mb=of.data.max_files_mb,
    )
