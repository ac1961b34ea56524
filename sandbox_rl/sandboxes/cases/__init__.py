"""Adversarial cases and positive controls as data, and what runs them on any backend.

`ALL_CASES` try what an episode may not get away with; `CONTROLS` are honest work that must succeed
under the same limits. `run_case` runs one of either.
"""

from sandbox_rl.sandboxes.cases.answers import ANSWERS
from sandbox_rl.sandboxes.cases.controls import CONTROLS
from sandbox_rl.sandboxes.cases.isolation import ENV_ALLOWED, ISOLATION
from sandbox_rl.sandboxes.cases.lifecycle import LIFECYCLE
from sandbox_rl.sandboxes.cases.model import CASE_LIMITS, Case, Outcome, Seen
from sandbox_rl.sandboxes.cases.privileges import PRIVILEGES
from sandbox_rl.sandboxes.cases.resources import RESOURCES
from sandbox_rl.sandboxes.cases.runner import run_case
from sandbox_rl.sandboxes.cases.starvation import MEMORY, STARVATION
from sandbox_rl.sandboxes.cases.streams import STREAMS, TOKENS
from sandbox_rl.sandboxes.cases.witness import HostWitness

__all__ = [
    "ALL_CASES",
    "CASE_LIMITS",
    "CONTROLS",
    "ENV_ALLOWED",
    "Case",
    "HostWitness",
    "Outcome",
    "Seen",
    "run_case",
]

ALL_CASES: tuple[Case, ...] = (
    *ISOLATION,
    *PRIVILEGES,
    *RESOURCES,
    *MEMORY,
    *STARVATION,
    *STREAMS,
    *ANSWERS,
    *LIFECYCLE,
    *TOKENS,
)
"""Every case that runs inside a sandbox, variants by other routes included."""
