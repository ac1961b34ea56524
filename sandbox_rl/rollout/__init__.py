"""Many episodes at once: the engine, its settings, and which groups a step trains on."""

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.rollout.engine import END_GRACE_S, RolloutEngine
from sandbox_rl.rollout.settings import OverlongPolicy, RolloutSettings
from sandbox_rl.rollout.slots import FirstGroups

__all__ = [
    "END_GRACE_S",
    "EpisodeRequest",
    "FirstGroups",
    "OverlongPolicy",
    "RolloutEngine",
    "RolloutSettings",
]
