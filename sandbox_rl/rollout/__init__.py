"""Many episodes at once: the engine, its settings, and which groups a step trains on."""

from sandbox_rl.rollout.engine import END_GRACE_S, RolloutEngine
from sandbox_rl.rollout.groups import FirstGroups, first_groups
from sandbox_rl.rollout.settings import EpisodeRequest, OverlongPolicy, RolloutSettings
from sandbox_rl.rollout.slots import episode_runner, run_requests

__all__ = [
    "END_GRACE_S",
    "EpisodeRequest",
    "FirstGroups",
    "OverlongPolicy",
    "RolloutEngine",
    "RolloutSettings",
    "episode_runner",
    "first_groups",
    "run_requests",
]
