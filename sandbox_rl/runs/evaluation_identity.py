"""What an evaluation's results depend on beside its plan, as JSON values for `evaluation.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sandbox_rl.config.run import RunSettings
from sandbox_rl.evaluation.identity import short_hash
from sandbox_rl.evaluation.plan import EvaluationPlan
from sandbox_rl.policies.openai_chat import EndpointSettings
from sandbox_rl.settings import Settings
from sandbox_rl.tasks.prompts import load_prompt_set
from sandbox_rl.training.config import ModelSettings

__all__ = ["model_identity", "settings_identity"]

_JUDGE_ADDRESS = {
    "base_url", "api_key_env", "timeout_s", "retries", "requests_per_second", "concurrency", "cache_dir",
}  # fmt: skip
"""Where a judge is and how it is asked does not change what it says."""


def model_identity(model: ModelSettings | EndpointSettings) -> dict[str, Any]:
    """Path, dtype, and of a directory what its files begin and end with: enough to tell checkpoints apart.

    Of an endpoint only its name for the model is known.
    """
    if isinstance(model, EndpointSettings):
        return {"endpoint": model.model}
    value: dict[str, Any] = {"path": model.path, "revision": model.revision, "dtype": model.dtype}
    folder = Path(model.path)
    if not folder.is_dir():
        return value
    parts: list[bytes | str] = []
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja", ".bin", ".model") and file.is_file():
            with file.open("rb") as content:
                size = file.stat().st_size
                parts += [file.name, str(size), content.read(1 << 20)]
                content.seek(max(0, size - (1 << 20)))
                parts.append(content.read())
    return value | {"path": str(folder.resolve()), "files": short_hash(*parts)}


def settings_identity(recipe: RunSettings, plan: EvaluationPlan, *, local: bool) -> dict[str, Any]:
    """What else results depend on: prompts, budgets, scoring, sandbox, and how a local model is talked to."""
    directories = [Path(directory) for directory in recipe.prompts]
    domains = sorted({task.domain for part in plan.parts for task in part.tasks})
    sets = {domain: load_prompt_set(domain, directories) for domain in domains}
    value: dict[str, Any] = {
        "prompts": {
            name: short_hash(found.system, found.instance, found.plain_system, found.plain_instance)
            for name, found in sets.items()
        },
        "episode": recipe.episode.model_dump(mode="json"),
        "reward": recipe.reward.model_dump(mode="json", exclude={"workers": True, "judge": _JUDGE_ADDRESS}),
    }
    if "sandbox" in plan.modes:
        value["sandbox"] = _dump(recipe.sandbox)
        value["tools"] = list(recipe.tools)
    if local:
        value["chat"] = _dump(recipe.chat)
    return value


def _dump(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")
