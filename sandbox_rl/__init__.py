"""Reinforcement learning of language models inside code sandboxes.

What stands in `__all__` is the public face (docs/api.md); everything else is private and may change.
Importing the package does nothing but define names: no torch, no files, no logging set-up. A name is loaded
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # each name as itself: type checkers take it for one of this module's
    from sandbox_rl.agents.base import Agent as Agent
    from sandbox_rl.agents.base import EpisodeRequest as EpisodeRequest
    from sandbox_rl.agents.base import EpisodeSettings as EpisodeSettings
    from sandbox_rl.agents.tokens import TokenAgent as TokenAgent
    from sandbox_rl.api import evaluate as evaluate
    from sandbox_rl.api import open_sandbox as open_sandbox
    from sandbox_rl.api import train as train
    from sandbox_rl.builders import build_chat as build_chat
    from sandbox_rl.builders import build_engine as build_engine
    from sandbox_rl.chat.calls import BrokenCall as BrokenCall
    from sandbox_rl.chat.calls import WrittenCalls as WrittenCalls
    from sandbox_rl.chat.calls import parse_object as parse_object
    from sandbox_rl.chat.dialects import Dialect as Dialect
    from sandbox_rl.chat.encoding import Piece as Piece
    from sandbox_rl.chat.format import ChatFormat as ChatFormat
    from sandbox_rl.config.load import load_recipe as load_recipe
    from sandbox_rl.config.recipe import Recipe as Recipe
    from sandbox_rl.config.suite import Suite as Suite
    from sandbox_rl.config.suite import load_suite as load_suite
    from sandbox_rl.display import Display as Display
    from sandbox_rl.errors import ConfigError as ConfigError
    from sandbox_rl.errors import DataError as DataError
    from sandbox_rl.errors import InfraFault as InfraFault
    from sandbox_rl.errors import ModelError as ModelError
    from sandbox_rl.errors import NothingTrained as NothingTrained
    from sandbox_rl.errors import SandboxFault as SandboxFault
    from sandbox_rl.errors import SandboxRLError as SandboxRLError
    from sandbox_rl.errors import SetupError as SetupError
    from sandbox_rl.errors import UserError as UserError
    from sandbox_rl.journal import Journal as Journal
    from sandbox_rl.journal import read_journal as read_journal
    from sandbox_rl.model_builders import build_policy as build_policy
    from sandbox_rl.policies.base import Policy as Policy
    from sandbox_rl.policies.base import PolicySession as PolicySession
    from sandbox_rl.policies.base import Sampling as Sampling
    from sandbox_rl.policies.config import TransformersSettings as TransformersSettings
    from sandbox_rl.policies.config import VLLMSettings as VLLMSettings
    from sandbox_rl.policies.scripted import ScriptedPolicy as ScriptedPolicy
    from sandbox_rl.rewards.base import BadGold as BadGold
    from sandbox_rl.rewards.base import Scorer as Scorer
    from sandbox_rl.rewards.base import reads_with as reads_with
    from sandbox_rl.rewards.config import RewardSettings as RewardSettings
    from sandbox_rl.rollout.engine import RolloutEngine as RolloutEngine
    from sandbox_rl.rollout.settings import RolloutSettings as RolloutSettings
    from sandbox_rl.runs.evaluate import EvaluationOutcome as EvaluationOutcome
    from sandbox_rl.runs.train import TrainResult as TrainResult
    from sandbox_rl.sandboxes.base import Sandbox as Sandbox
    from sandbox_rl.sandboxes.base import SandboxBackend as SandboxBackend
    from sandbox_rl.sandboxes.base import SandboxInfo as SandboxInfo
    from sandbox_rl.sandboxes.base import SandboxLimits as SandboxLimits
    from sandbox_rl.sandboxes.config import BackendSettings as BackendSettings
    from sandbox_rl.sandboxes.config import DockerSettings as DockerSettings
    from sandbox_rl.sandboxes.config import EmbeddedSettings as EmbeddedSettings
    from sandbox_rl.sandboxes.config import PoolSettings as PoolSettings
    from sandbox_rl.sandboxes.config import RaySettings as RaySettings
    from sandbox_rl.sandboxes.config import SandboxSettings as SandboxSettings
    from sandbox_rl.settings import Settings as Settings
    from sandbox_rl.tasks.config import DataSettings as DataSettings
    from sandbox_rl.tasks.config import TableSource as TableSource
    from sandbox_rl.tasks.config import TaskSource as TaskSource
    from sandbox_rl.tasks.load import TaskSet as TaskSet
    from sandbox_rl.tasks.load import load_tasks as load_tasks
    from sandbox_rl.terminal import Terminal as Terminal
    from sandbox_rl.tools.base import Tool as Tool
    from sandbox_rl.tools.toolbox import Toolbox as Toolbox
    from sandbox_rl.tools.toolbox import make_toolbox as make_toolbox
    from sandbox_rl.training.config import EvaluationSettings as EvaluationSettings
    from sandbox_rl.training.config import ModelSettings as ModelSettings
    from sandbox_rl.training.config import WarmupSettings as WarmupSettings
    from sandbox_rl.training.experts import Expert as Expert
    from sandbox_rl.training.experts import ExpertTurn as ExpertTurn
    from sandbox_rl.training.tiny import tiny_model as tiny_model
    from sandbox_rl.training.tiny import tiny_tokenizer as tiny_tokenizer
    from sandbox_rl.types import Action as Action
    from sandbox_rl.types import Answer as Answer
    from sandbox_rl.types import AnswerStatus as AnswerStatus
    from sandbox_rl.types import ExecResult as ExecResult
    from sandbox_rl.types import ExecStatus as ExecStatus
    from sandbox_rl.types import Message as Message
    from sandbox_rl.types import Observation as Observation
    from sandbox_rl.types import Reward as Reward
    from sandbox_rl.types import Rollout as Rollout
    from sandbox_rl.types import StopReason as StopReason
    from sandbox_rl.types import Stream as Stream
    from sandbox_rl.types import Task as Task
    from sandbox_rl.types import ToolCall as ToolCall
    from sandbox_rl.types import ToolFailure as ToolFailure
    from sandbox_rl.types import Trajectory as Trajectory
    from sandbox_rl.types import Turn as Turn

__version__ = "0.1.0"

_HOMES = {
    "agents.base": "Agent EpisodeRequest EpisodeSettings",
    "agents.tokens": "TokenAgent",
    "api": "evaluate open_sandbox train",
    "chat.calls": "BrokenCall WrittenCalls parse_object",
    "chat.dialects": "Dialect",
    "chat.encoding": "Piece",
    "chat.format": "ChatFormat",
    "runs.evaluate": "EvaluationOutcome",
    "builders": "build_chat build_engine",
    "model_builders": "build_policy",
    "config.load": "load_recipe",
    "config.recipe": "Recipe",
    "config.suite": "Suite load_suite",
    "display": "Display",
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
    "sandboxes.config": (
        "BackendSettings DockerSettings EmbeddedSettings PoolSettings RaySettings SandboxSettings"
    ),
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
__all__ = sorted(_HOME_OF)


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
