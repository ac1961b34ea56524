"""Where every sampled token of a step went: into the gradient, or into exactly one named reason why not.

What should happen is derived from the episodes and their rewards; what does happen is read off the very
tensors that the loss is computed from. The two are compared row by row: which tokens count, and whether each
advantage follows from the rewards of its group. A shifted mask, groups mixed up with other groups' rewards or
a fault that counts as a reward of 0 show at the first step. Of asynchronous updates the groups that one is
composed of are held against the packed rows in the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.rows import (
    ZERO,
    Advantages,
    ExpectedRow,
    TokenClass,
    as_expected,
    expected_rows,
    prompt_key,
)
from sandbox_rl.audit.shares import TokenShares
from sandbox_rl.types import Rollout


@dataclass(eq=False)
class SampleAudit:
    """Follows the rollouts of one process into its loss.

    Args:
        alarms: gets what does not fit.
        masks_truncated: TRL may mask whole rows (`mask_truncated_completions`).
        advantages: rewards of a group, None where not judged → its advantages. None: they depend on more than
            the group, and only their signs are looked at.
    """

    alarms: Alarms
    shares: TokenShares
    _: KW_ONLY
    masks_truncated: bool = False
    advantages: Advantages | None = None

    def __post_init__(self) -> None:
        self._waiting: dict[bytes, list[ExpectedRow]] = {}
        self._used: dict[bytes, list[ExpectedRow]] = {}
        self._sampled_at = -1

    def rolled_out(
        self,
        groups: Iterable[Sequence[Rollout]],
        step: int,
        *,
        left_out: Mapping[TokenClass, Iterable[Rollout]] | None = None,
    ) -> None:
        """Take note of a generation batch, before any of it reaches the loss.

        Args:
            groups: those that are handed to the trainer.
            left_out: sampled and not handed over, by reason.
        """
        self._end_generation(step)
        self._sampled_at = step
        for group in groups:
            for row, prompt in expected_rows(group, self.advantages):
                self._waiting.setdefault(prompt, []).append(row)
                self.shares.add(TokenClass.OBSERVED, len(row.ids) - row.tokens)
        for reason, rollouts in (left_out or {}).items():
            self.shares.add(reason, sum(sum(rollout.trajectory.action_mask) for rollout in rollouts))

    def in_loss(self, inputs: Mapping[str, Any], step: int) -> None:
        """Compare a micro-batch with what was rolled out.

        Args:
            inputs: of TRL's `compute_loss`: `prompt_ids`, `prompt_mask` (B, P), `completion_ids`,
                `completion_mask`, perhaps `tool_mask` (B, C), `advantages` (B,) or (B, C).
        """
        columns = {
            name: inputs[name].detach().cpu().numpy()
            for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")
            if inputs.get(name) is not None
        }
        advantages = inputs["advantages"].detach().float().cpu().numpy()
        for number in range(len(advantages)):
            prompt = columns["prompt_ids"][number][columns["prompt_mask"][number].astype(bool)]
            counted = columns["completion_mask"][number].astype(bool)
            if "tool_mask" in columns:
                counted = counted & columns["tool_mask"][number].astype(bool)
            advantage = float(np.ravel(advantages[number])[np.abs(np.ravel(advantages[number])).argmax()])
            row, again = self._find(
                prompt_key(prompt), columns["completion_ids"][number], advantage, trained=bool(counted.any())
            )
            if row is None:
                self.alarms.sound(
                    step,
                    AlarmName.UNKNOWN_ROW,
                    f"a row of {int(counted.sum())} trained tokens is not what any episode of this step "
                    "sampled",
                )
                continue
            self._compare(row, counted, advantage, step)
            if not again:
                self.shares.add(_class_of(row, counted, advantage), row.tokens)

    def fresh(self, step: int) -> bool:
        """Whether no update has happened since the rows in the loss were sampled."""
        return step == self._sampled_at

    def _compare(self, row: ExpectedRow, counted: np.ndarray[Any, Any], advantage: float, step: int) -> None:
        whole = np.zeros_like(counted)
        if row.judged:
            whole[: len(row.mask)] = row.mask
        by_choice = not counted.any() and self.masks_truncated
        if not by_choice and not np.array_equal(whole, counted):
            self.alarms.sound(
                step,
                AlarmName.MASK_DIFFERS,
                f"episode {row.episode}: {int((counted & ~whole).sum())} tokens are trained that were not "
                f"sampled, {int((whole & ~counted).sum())} sampled ones are not; an end-of-turn id or a mask "
                "is wrong",
            )
        if not row.judged and abs(advantage) > ZERO:
            self.alarms.sound(
                step,
                AlarmName.FAULT_AS_REWARD,
                f"episode {row.episode} was not judged and has an advantage of {advantage:.3g}, expected 0",
            )
        elif row.judged and row.sign != _sign(advantage):
            self.alarms.sound(
                step,
                AlarmName.ADVANTAGE_DIFFERS,
                f"episode {row.episode}: advantage {advantage:.3g}, but its reward lies "
                f"{('below', 'at', 'above')[row.sign + 1]} the mean of its group; rewards or rows are in "
                "another order",
            )
        elif row.advantage is not None and not as_expected(advantage, row.advantage):
            self.alarms.sound(
                step,
                AlarmName.ADVANTAGE_DIFFERS,
                f"episode {row.episode}: advantage {advantage:.3g}, the rewards of its group give "
                f"{row.advantage:.3g}; something changes advantages or rewards on their way",
            )

    def _find(
        self, prompt: bytes, ids: np.ndarray[Any, Any], advantage: float, *, trained: bool
    ) -> tuple[ExpectedRow | None, bool]:
        """The rollout behind a row, and whether it was in a loss before (`num_iterations` > 1).

        A policy that has become sure samples the same tokens several times in a group. What the loss makes of
        the row distinguishes such rollouts: the one that fits is taken, and if something is wrong with
        another one, no fitting rollout is left for it.
        """
        sign = _sign(advantage)

        def fit(row: ExpectedRow) -> tuple[int, bool, bool, float]:
            off = 0.0 if row.advantage is None else abs(advantage - row.advantage)
            return len(row.ids), row.judged == trained, row.sign == sign, -off

        for again, places in ((False, self._waiting), (True, self._used)):
            fits = [row for row in places.get(prompt, ()) if np.array_equal(ids[: len(row.ids)], row.ids)]
            if fits:
                row = max(fits, key=fit)
                if not again:
                    self._waiting[prompt].remove(row)
                    self._used.setdefault(prompt, []).append(row)
                return row, again
        return None, False

    def _end_generation(self, step: int) -> None:
        lost = [row for rows in self._waiting.values() for row in rows]
        self.shares.add(TokenClass.UNUSED, sum(row.tokens for row in lost))
        if lost:
            self.alarms.sound(
                step,
                AlarmName.LOST_ROW,
                f"{len(lost)} episodes, {lost[0].episode} the first, were handed to the trainer and never "
                "reached the loss",
            )
        self._waiting, self._used = {}, {}


def _sign(advantage: float) -> int:
    return int(np.sign(advantage)) if abs(advantage) > ZERO else 0


def _class_of(row: ExpectedRow, counted: np.ndarray[Any, Any], advantage: float) -> TokenClass:
    if row.tokens and not counted.any():
        return TokenClass.TRUNCATED if row.judged else row.expected
    if abs(advantage) > ZERO:
        return TokenClass.TRAINED
    return TokenClass.ZERO_ADVANTAGE if row.expected is TokenClass.TRAINED else row.expected


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


@dataclass(eq=False)
class PackedAudit:
    """Follows whole groups into the packed rows of an update.

    Args:
        advantages: see `SampleAudit`.
        size: of a group. Of one with fewer samples the mean is not known, but a higher reward is never worth
            less.
    """

    alarms: Alarms
    shares: TokenShares
    _: KW_ONLY
    advantages: Advantages | None = None
    size: int = 0

    def composed(self, samples: Iterable[PackedSample], step: int) -> None:
        """Take note of what an update is composed of: whole groups, on the main process."""
        groups: dict[int, list[PackedSample]] = {}
        for sample in samples:
            groups.setdefault(sample.group, []).append(sample)
        for group in groups.values():
            for sample in group:
                tokens = int(sample.completion_mask.sum())
                self.shares.due(tokens, tokens * abs(sample.advantage))
            self._compare(sorted(group, key=lambda sample: sample.reward), step)

    def in_loss(self, advantages: np.ndarray[Any, Any]) -> None:
        """Count the tokens that the loss of a packed micro-batch is taken over.

        Args:
            advantages: of each of them, shape (N,).
        """
        weights = np.abs(advantages)
        trained = int((weights > ZERO).sum())
        self.shares.add(TokenClass.TRAINED, trained)
        self.shares.add(TokenClass.ZERO_ADVANTAGE, len(advantages) - trained)
        self.shares.in_loss(len(advantages), float(weights.sum(dtype=np.float64)))

    def _compare(self, group: Sequence[PackedSample], step: int) -> None:
        """`group` by ascending reward."""
        if self.advantages is not None and len(group) == self.size:
            expected = self.advantages([sample.reward for sample in group])
            wrong = [
                (sample, due)
                for sample, due in zip(group, expected, strict=True)
                if due is not None and not as_expected(sample.advantage, due)
            ]
            if wrong:
                sample, due = wrong[0]
                self.alarms.sound(
                    step,
                    AlarmName.ADVANTAGE_DIFFERS,
                    f"group {sample.group}: the reward {sample.reward:.3g} has the advantage "
                    f"{sample.advantage:.3g}, expected {due:.3g}; rewards or rows are in another order, or "
                    "advantages were changed",
                )
            return
        for low, high in pairwise(group):
            equal = high.reward - low.reward < 1e-6
            gap = high.advantage - low.advantage
            if (abs(gap) if equal else -gap) > ZERO:
                self.alarms.sound(
                    step,
                    AlarmName.ADVANTAGE_DIFFERS,
                    f"group {low.group}: rewards {low.reward:.3g} and {high.reward:.3g} have advantages "
                    f"{low.advantage:.3g} and {high.advantage:.3g}; rewards or rows are in another order",
                )
