"""Reinforcement learning of language models inside code sandboxes.

What stands in `__all__` is the public face (docs/api.md); everything else is private and may change.
Importing the package does nothing but define names: no torch, no files, no logging set-up. A name is loaded
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandbox_rl.agents.base import Agent, EpisodeRequest
    from sandbox_rl.agents.tokens import TokenAgent
    from sandbox_rl.api import evaluate, open_sandbox, train
    from sandbox_rl.builders import build_chat, build_engine, build_policy
    from sandbox_rl.chat.dialects import Dialect
    from sandbox_rl.chat.format import ChatFormat
    from sandbox_rl.config.load import load_recipe
    from sandbox_rl.config.recipe import Recipe
    from sandbox_rl.config.suite import Suite, load_suite
    from sandbox_rl.display import Display
    from sandbox_rl.episode import EpisodeSettings
    from sandbox_rl.errors import (
        ConfigError,
        DataError,
        InfraFault,
        ModelError,
        NothingTrained,
        SandboxFault,
        SandboxRLError,
        SetupError,
        UserError,
    )
    from sandbox_rl.journal import Journal, read_journal
    from sandbox_rl.policies.base import Policy, PolicySession, Sampling
    from sandbox_rl.policies.config import TransformersSettings, VLLMSettings
    from sandbox_rl.policies.scripted import ScriptedPolicy
    from sandbox_rl.rewards.base import BadGold, Scorer, reads_with
    from sandbox_rl.rewards.config import RewardSettings
    from sandbox_rl.rollout.engine import RolloutEngine
    from sandbox_rl.rollout.settings import RolloutSettings
    from sandbox_rl.runs.evaluate import EvaluationOutcome
    from sandbox_rl.runs.train import TrainResult
    from sandbox_rl.sandboxes.base import Sandbox, SandboxBackend, SandboxInfo, SandboxLimits
    from sandbox_rl.sandboxes.config import (
        BackendSettings,
        DockerSettings,
        EmbeddedSettings,
        PoolSettings,
        RaySettings,
    )
    from sandbox_rl.settings import Settings
    from sandbox_rl.tasks.config import DataSettings, TableSource, TaskSource
    from sandbox_rl.tasks.load import TaskSet, load_tasks
    from sandbox_rl.terminal import Terminal
    from sandbox_rl.tools.base import Tool
    from sandbox_rl.tools.toolbox import Toolbox, make_toolbox
    from sandbox_rl.training.config import EvaluationSettings, ModelSettings, WarmupSettings
    from sandbox_rl.training.experts import Expert, ExpertTurn
    from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
    from sandbox_rl.types import (
        Action,
        Answer,
        AnswerStatus,
        ExecResult,
        ExecStatus,
        Message,
        Observation,
        Reward,
        Rollout,
        StopReason,
        Stream,
        Task,
        ToolCall,
        ToolFailure,
        Trajectory,
        Turn,
    )

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Agent",
    "Answer",
    "AnswerStatus",
    "BackendSettings",
    "BadGold",
    "ChatFormat",
    "ConfigError",
    "DataError",
    "DataSettings",
    "Dialect",
    "Display",
    "DockerSettings",
    "EmbeddedSettings",
    "EpisodeRequest",
    "EpisodeSettings",
    "EvaluationOutcome",
    "EvaluationSettings",
    "ExecResult",
    "ExecStatus",
    "Expert",
    "ExpertTurn",
    "InfraFault",
    "Journal",
    "Message",
    "ModelError",
    "ModelSettings",
    "NothingTrained",
    "Observation",
    "Policy",
    "PolicySession",
    "PoolSettings",
    "RaySettings",
    "Recipe",
    "Reward",
    "RewardSettings",
    "Rollout",
    "RolloutEngine",
    "RolloutSettings",
    "Sampling",
    "Sandbox",
    "SandboxBackend",
    "SandboxFault",
    "SandboxInfo",
    "SandboxLimits",
    "SandboxRLError",
    "Scorer",
    "ScriptedPolicy",
    "Settings",
    "SetupError",
    "StopReason",
    "Stream",
    "Suite",
    "TableSource",
    "Task",
    "TaskSet",
    "TaskSource",
    "Terminal",
    "TokenAgent",
    "Tool",
    "ToolCall",
    "ToolFailure",
    "Toolbox",
    "TrainResult",
    "Trajectory",
    "TransformersSettings",
    "Turn",
    "UserError",
    "VLLMSettings",
    "WarmupSettings",
    "build_chat",
    "build_engine",
    "build_policy",
    "evaluate",
    "load_recipe",
    "load_suite",
    "load_tasks",
    "make_toolbox",
    "open_sandbox",
    "read_journal",
    "reads_with",
    "tiny_model",
    "tiny_tokenizer",
    "train",
]

_HOMES = {
    "agents.base": "Agent EpisodeRequest",
    "agents.tokens": "TokenAgent",
    "api": "evaluate open_sandbox train",
    "chat.dialects": "Dialect",
    "chat.format": "ChatFormat",
    "runs.evaluate": "EvaluationOutcome",
    "builders": "build_chat build_engine build_policy",
    "config.load": "load_recipe",
    "config.recipe": "Recipe",
    "config.suite": "Suite load_suite",
    "display": "Display",
    "episode": "EpisodeSettings",
    "errors": (
        "ConfigError DataError InfraFault ModelError NothingTrained SandboxFault "
        "SandboxRLError SetupError UserError"
    ),
    "journal": "Journal read_journal",
    "policies.base": "Policy PolicySession Sampling",
    "policies.config": "TransformersSettings VLLMSettings",
    "policies.scripted": "ScriptedPolicy",
    "rewards.base": "BadGold Scorer reads_with",
    "rewards.config": "RewardSettings",
    "rollout.engine": "RolloutEngine",
    "rollout.settings": "RolloutSettings",
    "runs.train": "TrainResult",
    "sandboxes.base": "Sandbox SandboxBackend SandboxInfo SandboxLimits",
    "sandboxes.config": "BackendSettings DockerSettings EmbeddedSettings PoolSettings RaySettings",
    "settings": "Settings",
    "tasks.config": "DataSettings TableSource TaskSource",
    "tasks.load": "TaskSet load_tasks",
    "terminal": "Terminal",
    "tools.base": "Tool",
    "tools.toolbox": "Toolbox make_toolbox",
    "training.config": "EvaluationSettings ModelSettings WarmupSettings",
    "training.experts": "Expert ExpertTurn",
    "training.tiny": "tiny_model tiny_tokenizer",
    "types": (
        "Action Answer AnswerStatus ExecResult ExecStatus Message Observation Reward Rollout "
        "StopReason Stream Task ToolCall ToolFailure Trajectory Turn"
    ),
}
"""Module → the public names that it defines."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
