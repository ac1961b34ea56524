"""Faults on purpose: backends, agents and scorers that fail now and then, for real runs and for tests.

What is injected is always a fault of ours and never looks like the policy: it is retried, and where it
persists the episode has no reward.
"""

from sandbox_rl.fault_injection.settings import ChaosSettings
from sandbox_rl.fault_injection.wrappers import FaultyAgent, FaultyBackend, FaultyScoring, Injector

__all__ = ["ChaosSettings", "FaultyAgent", "FaultyBackend", "FaultyScoring", "Injector"]
