"""What a process of its own rolls out: the engine of a recipe on servers that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.builders import build_backend, build_chat, build_engine
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.http_client import Address
from sandbox_rl.policies.base import Sampling, WeightVersion
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.policies.vllm.policy import VLLMPolicy
from sandbox_rl.policies.vllm.source import ExternalServers
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.pretrained import generation_ends, load_tokenizer
from sandbox_rl.types import Task


def build_rollouts(
    recipe: Recipe,
    base_dir: Path,
    version: WeightVersion,
    *,
    model: str,
    addresses: Sequence[Address],
    sampling: Sampling,
) -> tuple[RolloutEngine, list[Task]]:
    """An engine, and the tasks that groups are of.

    Args:
        version: of the weights in the servers.
        model: directory or Hub id of the tokenizer.
        addresses: of the servers.
    """
    settings = recipe.policy
    assert isinstance(settings, VLLMSettings), "checked with the recipe"
    trained = recipe.model.model_copy(update={"path": model})
    chat = build_chat(recipe, load_tokenizer(trained), generation_ends(trained))
    source = ExternalServers(
        addresses, needed_context=1, tokenizer=None, startup_timeout_s=settings.startup_timeout_s
    )
    policy = VLLMPolicy(source, settings, end_ids=chat.ends.ids, version=version)
    engine = build_engine(
        recipe,
        base_dir=base_dir,
        agent=TokenAgent(policy, chat),
        sampling=sampling,
        backend=build_backend(recipe),
        chaos=recipe.chaos,
    )
    return engine, list(load_tasks(recipe.data, split="train", base_dir=base_dir))
