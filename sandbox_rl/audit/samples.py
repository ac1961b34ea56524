"""Where every sampled token of a step went: into the gradient, or into exactly one named reason why not.

What should happen is derived from the episodes and their rewards; what does happen is read off the very
tensors that the loss is computed from. The two are compared row by row: which tokens count, and whether each
advantage follows from the rewards of its group. A shifted mask, groups mixed up with other groups' rewards or
a fault that counts as a reward of 0 show at the first step.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, Protocol

import numpy as np

from sandbox_rl.audit.alarms import Alarm, AlarmName, Alarms
from sandbox_rl.audit.rows import ExpectedRow, TokenClass, expected_rows, prompt_key
from sandbox_rl.types import Rollout

__all__ = ["PackedSample", "SampleAudit", "TokenClass"]

ZERO = 2e-3
"""Advantages below this are zero: TRL divides rounding errors of equal rewards by 1e-4."""

QUIET_STEPS = 3
"""Steps in a row without a trained token, or with half the usual share, after which it is no accident."""

FEW_STEPS = 10
"""Steps up to which equal rewards of all groups may be chance."""

HISTORY = 10
"""Steps that say what share of tokens masks usually take."""

_BY_CHOICE = (TokenClass.TRAINED, TokenClass.ZERO_ADVANTAGE, TokenClass.OBSERVED)


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


class SampleAudit:
    """Follows the rollouts of one process into its loss.

    Args:
        alarms: gets what does not fit.
        total: sums a list of numbers over all processes; every process must call `take` equally often.
        masks_truncated: TRL may mask whole rows (`mask_truncated_completions`).
    """

    def __init__(
        self,
        alarms: Alarms,
        *,
        total: Callable[[Sequence[float]], Sequence[float]] = list,
        masks_truncated: bool = False,
    ) -> None:
        self._alarms = alarms
        self._total = total
        self._masks_truncated = masks_truncated
        self._waiting: dict[bytes, list[ExpectedRow]] = {}
        self._used: dict[bytes, list[ExpectedRow]] = {}
        self._tokens: Counter[TokenClass] = Counter()
        self._masked = deque[float](maxlen=HISTORY)
        self._quiet = 0
        self._fallen = 0
        self._sampled_at = -1
        self._expected = 0
        self._in_loss = 0
        self._all = Counter[TokenClass]()
        self.steps = 0
        """Steps that were looked at."""
        self.trained_here = 0
        """Tokens of this process with a gradient so far, those of the step that is going on included."""
        self.trained_tokens = 0.0
        """Tokens with a gradient so far, over all processes."""

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
            for row, prompt in expected_rows(group):
                self._waiting.setdefault(prompt, []).append(row)
                self._tokens[TokenClass.OBSERVED] += len(row.ids) - row.tokens
        for reason, rollouts in (left_out or {}).items():
            self._tokens[reason] += sum(sum(rollout.trajectory.action_mask) for rollout in rollouts)

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
            self._one(prompt_key(prompt), columns["completion_ids"][number], counted, advantage, step)

    def packed(self, samples: Iterable[PackedSample], step: int) -> None:
        """Take note of what an asynchronous update is composed of: whole groups, on the main process."""
        groups: dict[int, list[PackedSample]] = {}
        for sample in samples:
            groups.setdefault(sample.group, []).append(sample)
        for group in groups.values():
            self._expected += sum(int(sample.completion_mask.sum()) for sample in group)
            # Of a group that is partly used the mean is not known, but a higher reward is never worth less.
            group.sort(key=lambda sample: sample.reward)
            for low, high in pairwise(group):
                equal = high.reward - low.reward < 1e-6
                apart = high.advantage - low.advantage
                if (abs(apart) if equal else -apart) > ZERO:
                    self._sound(
                        step,
                        AlarmName.ADVANTAGE_DIFFERS,
                        f"group {low.group}: rewards {low.reward:.3g} and {high.reward:.3g} have advantages "
                        f"{low.advantage:.3g} and {high.advantage:.3g}; rewards or rows are in another order",
                    )

    def left_out(self, reason: TokenClass, tokens: int) -> None:
        """Take note of tokens that were sampled for an asynchronous update and are in none."""
        self._tokens[reason] += tokens

    def in_packed_loss(self, advantages: np.ndarray[Any, Any]) -> None:
        """Count the tokens that the loss of a packed micro-batch is taken over.

        Args:
            advantages: of each of them, shape (N,).
        """
        trained = int((np.abs(advantages) > ZERO).sum())
        self._tokens[TokenClass.TRAINED] += trained
        self.trained_here += trained
        self._tokens[TokenClass.ZERO_ADVANTAGE] += len(advantages) - trained
        self._in_loss += len(advantages)

    def fresh(self, step: int) -> bool:
        """Whether no update has happened since the rows in the loss were sampled."""
        return step == self._sampled_at

    def take(self, step: int) -> dict[str, float]:
        """The shares since the last call, over all processes; sounds the alarms about a whole step."""
        names = list(TokenClass)
        own = [float(self._tokens[name]) for name in names]
        *summed, expected, in_loss = self._total([*own, float(self._expected), float(self._in_loss)])
        counts = dict(zip(names, summed, strict=True))
        self._tokens, self._expected, self._in_loss = Counter(), 0, 0
        if expected != in_loss:
            self._sound(
                step,
                AlarmName.MASK_DIFFERS,
                f"the loss is taken over {in_loss:.0f} tokens, {expected:.0f} were sampled for this update",
            )
        sampled = sum(count for name, count in counts.items() if name is not TokenClass.OBSERVED)
        if not sampled:
            return {}
        self.steps += 1
        self.trained_tokens += counts[TokenClass.TRAINED]
        self._all.update({name: count for name, count in counts.items() if name is not TokenClass.OBSERVED})
        shares = {name: count / sampled for name, count in counts.items()}
        self._judge(shares, step)
        return {
            "samples/tokens": sampled,
            **{
                f"samples/{name.value}": share for name, share in shares.items() if share or name == "trained"
            },
        }

    def nothing_trained(self) -> str | None:
        """What became of all tokens, where it is no accident that none of any step had a gradient; else None.

        Rewards that are all equal can be chance in a rehearsal of a few steps. Masks are not.
        """
        if not self.steps or self.trained_tokens:
            return None
        (name, count), *_ = self._all.most_common(1)
        if name is TokenClass.ZERO_ADVANTAGE and self.steps < FEW_STEPS:
            return None
        return f"{count / self._all.total():.0%} of {self._all.total():.0f} sampled tokens are {name.value}"

    def _judge(self, shares: Mapping[TokenClass, float], step: int) -> None:
        self._quiet = 0 if shares[TokenClass.TRAINED] else self._quiet + 1
        reasons = {name: share for name, share in shares.items() if name not in _BY_CHOICE}
        masked = sum(reasons.values())
        if self._quiet and (self._quiet >= QUIET_STEPS or masked >= 1 - 1e-9):
            largest = max((share, n) for n, share in shares.items() if n is not TokenClass.OBSERVED)[1]
            self._alarms.sound(
                Alarm(
                    step,
                    AlarmName.NOTHING_TRAINED,
                    f"no token had a gradient in {self._quiet} steps: {shares[largest]:.0%} of those sampled "
                    f"are {largest.value}",
                )
            )
        usual = median(self._masked) if len(self._masked) == HISTORY else None
        # A few faults among few episodes halve the share of one step; a mask gone wrong stays.
        fell = usual is not None and 1 - masked < 0.5 * (1 - usual)
        self._fallen = self._fallen + 1 if fell else 0
        if usual is not None and self._fallen >= QUIET_STEPS:
            worst = max((share, n) for n, share in reasons.items())[1]
            self._alarms.sound(
                Alarm(
                    step,
                    AlarmName.TRAINED_SHARE_FELL,
                    f"{masked:.0%} of the sampled tokens are masked, usually {usual:.0%}; the most "
                    f"({reasons[worst]:.0%}) as {worst.value}",
                )
            )
        self._masked.append(masked)

    def _one(
        self,
        prompt: bytes,
        ids: np.ndarray[Any, Any],
        counted: np.ndarray[Any, Any],
        advantage: float,
        step: int,
    ) -> None:
        row, again = self._find(prompt, ids, advantage)
        if row is None:
            self._sound(step, AlarmName.UNKNOWN_ROW, f"a row of {int(counted.sum())} trained tokens is not "
                        "what any episode of this step sampled")  # fmt: skip
            return
        self._compare(row, counted, advantage, step)
        if not again:
            found = self._class_of(row, counted, advantage)
            self._tokens[found] += row.tokens
            self.trained_here += row.tokens if found is TokenClass.TRAINED else 0

    def _class_of(self, row: ExpectedRow, counted: np.ndarray[Any, Any], advantage: float) -> TokenClass:
        if row.tokens and not counted.any():
            return TokenClass.TRUNCATED if row.expected in _BY_CHOICE else row.expected
        if abs(advantage) > ZERO:
            return TokenClass.TRAINED
        return TokenClass.ZERO_ADVANTAGE if row.expected is TokenClass.TRAINED else row.expected

    def _compare(self, row: ExpectedRow, counted: np.ndarray[Any, Any], advantage: float, step: int) -> None:
        whole = np.zeros_like(counted)
        if row.judged:
            whole[: len(row.mask)] = row.mask
        by_choice = not counted.any() and self._masks_truncated
        if not by_choice and not np.array_equal(whole, counted):
            self._sound(
                step,
                AlarmName.MASK_DIFFERS,
                f"episode {row.episode}: {int((counted & ~whole).sum())} tokens are trained that were not "
                f"sampled, {int((whole & ~counted).sum())} sampled ones are not; an end-of-turn id or a mask "
                "is wrong",
            )
        if not row.judged and abs(advantage) > ZERO:
            self._sound(
                step,
                AlarmName.FAULT_AS_REWARD,
                f"episode {row.episode} was not judged and has an advantage of {advantage:.3g}, expected 0",
            )
        elif row.judged and row.sign != int(np.sign(advantage) if abs(advantage) > ZERO else 0):
            self._sound(
                step,
                AlarmName.ADVANTAGE_DIFFERS,
                f"episode {row.episode}: advantage {advantage:.3g}, but its reward lies "
                f"{('below', 'at', 'above')[row.sign + 1]} the mean of its group; rewards or rows are in "
                "another order",
            )

    def _find(
        self, prompt: bytes, ids: np.ndarray[Any, Any], advantage: float
    ) -> tuple[ExpectedRow | None, bool]:
        """The rollout behind a row, and whether it was in a loss before (`num_iterations` > 1).

        Rollouts of equal tokens are told apart by the sign of the advantage.
        """
        sign = int(np.sign(advantage)) if abs(advantage) > ZERO else 0
        for again, places in ((False, self._waiting), (True, self._used)):
            fits = [row for row in places.get(prompt, ()) if np.array_equal(ids[: len(row.ids)], row.ids)]
            if fits:
                row = max(fits, key=lambda r: (len(r.ids), r.sign == sign, not r.judged))
                if not again:
                    self._waiting[prompt].remove(row)
                    self._used.setdefault(prompt, []).append(row)
                return row, again
        return None, False

    def _end_generation(self, step: int) -> None:
        lost = [row for rows in self._waiting.values() for row in rows]
        self._tokens[TokenClass.UNUSED] += sum(row.tokens for row in lost)
        if lost:
            self._sound(step, AlarmName.LOST_ROW, f"{len(lost)} episodes, {lost[0].episode} the first, were "
                        "handed to the trainer and never reached the loss")  # fmt: skip
        self._waiting, self._used = {}, {}

    def _sound(self, step: int, name: AlarmName, detail: str) -> None:
        self._alarms.sound(Alarm(step, name, detail))
