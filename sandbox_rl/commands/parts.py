"""From a recipe to objects: the one place that names concrete backends and engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.episode import SamplingSettings
from sandbox_rl.policies.base import Policy
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout import RolloutEngine
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.tasks.prompts import PromptSet, load_prompt_set, render
from sandbox_rl.tools.toolbox import Toolbox, default_toolbox
from sandbox_rl.types import Message, Task

__all__ = ["build_backend", "build_engine", "build_render", "build_scoring", "build_toolbox"]


def build_backend(recipe: Recipe) -> SandboxBackend:
    """The sandbox backend of a recipe."""
    return EmbeddedBackend(settings=recipe.sandbox)


def build_toolbox(recipe: Recipe) -> Toolbox:
    """The tools of a recipe."""
    return default_toolbox(exec_timeout=recipe.episode.exec_timeout_s)


def build_scoring(recipe: Recipe) -> ScoringPool:
    """The scorers of a recipe, in processes of their own."""
    return ScoringPool.from_settings(recipe.reward)


def build_render(recipe: Recipe, base_dir: Path) -> Callable[[Task], tuple[Message, ...]]:
    """The function from a task to the messages of its prompt, by the task's domain."""
    directories = tuple(base_dir / directory for directory in recipe.prompts)
    sets: dict[str, PromptSet] = {}

    def rendered(task: Task) -> tuple[Message, ...]:
        if task.domain not in sets:
            sets[task.domain] = load_prompt_set(task.domain, directories)
        return render(task, sets[task.domain])

    return rendered


def build_engine(
    recipe: Recipe,
    *,
    base_dir: Path,
    policy: Policy,
    chat: ChatFormat,
    sampling: SamplingSettings,
    backend: SandboxBackend | None = None,
) -> RolloutEngine:
    """The rollout engine around a policy; enter it to start its parts."""
    return RolloutEngine(
        policy=policy,
        backend=backend if backend is not None else build_backend(recipe),
        scoring=build_scoring(recipe),
        chat=chat,
        toolbox=build_toolbox(recipe),
        render=build_render(recipe, base_dir),
        episode=recipe.episode,
        sampling=sampling,
        settings=recipe.rollout,
    )
