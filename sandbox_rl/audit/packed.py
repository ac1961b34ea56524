"""Asynchronous updates: the groups that one is composed of, beside the packed rows in the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.rows import ZERO, Advantages, TokenClass, as_expected
from sandbox_rl.audit.shares import TokenShares

__all__ = ["PackedAudit", "PackedSample"]


class PackedSample(Protocol):
    """What is read of a sample of an asynchronous update."""

    @property
    def group(self) -> int: ...

    @property
    def index(self) -> int: ...

    @property
    def completion_mask(self) -> np.ndarray[Any, Any]: ...

    @property
    def advantage(self) -> float: ...

    @property
    def reward(self) -> float: ...


class PackedAudit:
    """Follows whole groups into the packed rows of an update.

    Args:
        advantages: see `SampleAudit`.
        size: of a group. Of one with fewer samples the mean is not known, but a higher reward is never worth
            less.
    """

    def __init__(
        self, alarms: Alarms, shares: TokenShares, *, advantages: Advantages | None = None, size: int = 0
    ) -> None:
        self._alarms = alarms
        self._shares = shares
        self._advantages = advantages
        self._size = size

    def composed(self, samples: Iterable[PackedSample], step: int) -> None:
        """Take note of what an update is composed of: whole groups, on the main process."""
        groups: dict[int, list[PackedSample]] = {}
        for sample in samples:
            groups.setdefault(sample.group, []).append(sample)
        for group in groups.values():
            for sample in group:
                tokens = int(sample.completion_mask.sum())
                self._shares.due(tokens, tokens * abs(sample.advantage))
            self._compare(sorted(group, key=lambda sample: sample.reward), step)

    def left_out(self, reason: TokenClass, tokens: int) -> None:
        """Take note of tokens that were sampled for an update and are in none."""
        self._shares.add(reason, tokens)

    def in_loss(self, advantages: np.ndarray[Any, Any]) -> None:
        """Count the tokens that the loss of a packed micro-batch is taken over.

        Args:
            advantages: of each of them, shape (N,).
        """
        weights = np.abs(advantages)
        trained = int((weights > ZERO).sum())
        self._shares.add(TokenClass.TRAINED, trained)
        self._shares.add(TokenClass.ZERO_ADVANTAGE, len(advantages) - trained)
        self._shares.in_loss(len(advantages), float(weights.sum(dtype=np.float64)))

    def _compare(self, group: Sequence[PackedSample], step: int) -> None:
        """`group` by ascending reward."""
        if self._advantages is not None and len(group) == self._size:
            expected = self._advantages([sample.reward for sample in group])
            wrong = [
                (sample, due)
                for sample, due in zip(group, expected, strict=True)
                if due is not None and not as_expected(sample.advantage, due)
            ]
            if wrong:
                sample, due = wrong[0]
                self._alarms.sound(
                    step,
                    AlarmName.ADVANTAGE_DIFFERS,
                    f"group {sample.group}: the reward {sample.reward:.3g} has the advantage "
                    f"{sample.advantage:.3g}, expected {due:.3g}; rewards or rows are in another order, or "
                    "advantages were changed",
                )
            return
        for low, high in pairwise(group):
            equal = high.reward - low.reward < 1e-6
            apart = high.advantage - low.advantage
            if (abs(apart) if equal else -apart) > ZERO:
                self._alarms.sound(
                    step,
                    AlarmName.ADVANTAGE_DIFFERS,
                    f"group {low.group}: rewards {low.reward:.3g} and {high.reward:.3g} have advantages "
                    f"{low.advantage:.3g} and {high.advantage:.3g}; rewards or rows are in another order",
                )
