"""What an assistant depends on: the parts of a recipe that matter without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from sandbox_rl.config.load import load_recipe, load_settings
from sandbox_rl.config.run import AgentSettings
from sandbox_rl.config.shipped import find_recipe
from sandbox_rl.policies.base import Sampling
from sandbox_rl.registry import shipped


class AssistantSettings(AgentSettings):
    """How `sandbox-rl run` works. Budgets hold for each message of the user."""

    sampling: Sampling = Sampling()
    """How turns are sampled."""
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
        **{block: getattr(of, block) for block in AgentSettings.model_fields},
        sampling=of.evaluation.sampling,  # turns are sampled as in its evaluation
        max_input_mb=of.data.max_files_mb,
    )
