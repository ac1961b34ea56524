"""A generation of one process, and the groups that it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sandbox_rl.ledger import Group
from sandbox_rl.training.groups import NumberedGroup
from sandbox_rl.types import Rollout

__all__ = ["Drawn", "Generation"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of this process.

    Args:
        number: in the run; step: updates before it.
        first: number, in the run, of the first group of this process.
        size: of a group.
        again: how often it was sampled before, by starts of the run whose records were replaced.
    """

    number: int
    step: int
    first: int
    size: int
    again: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """The groups that a generation begins with.

    Args:
        cut: groups that were cancelled.
        cut_rollouts: episodes that had ended in them.
    """

    groups: tuple[NumberedGroup, ...]
    cut: tuple[Group, ...] = ()
    cut_rollouts: Sequence[Rollout] = ()
    metrics: dict[str, float] = field(default_factory=dict)
