"""What an audit found wrong, by name, said once in the log and kept in `alarms.jsonl`."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from sandbox_rl.outputs import append_line

logger = logging.getLogger(__name__)

REPEAT = 10
"""An alarm that goes on is said again each time it has come this often; the file has them all."""


class AlarmName(StrEnum):
    """What can be wrong. Each value is a column `alarms/NAME` of the metrics."""

    UPDATES_VANISH = "updates_vanish"  # the optimizer's updates are lost in the rounding of the weights
    NO_UPDATE = "no_update"  # tokens are trained on and the weights stay, or the optimizer lacks some of them
    WEIGHTS_CHANGED = "weights_changed"  # something besides the optimizer has written to the weights
    FROZEN = "frozen"  # weights that a run should train get no gradient
    OPTIMIZER_CHANGED = "optimizer_changed"  # the optimizer has lost, or something rewrote, what it remembers
    NOT_FINITE = "not_finite"  # gradients or weights are NaN or infinite
    NOTHING_TRAINED = "nothing_trained"  # no token of the last steps had a gradient
    TRAINED_SHARE_FELL = "trained_share_fell"  # masks leave less than half of what they usually leave
    MASK_DIFFERS = "mask_differs"  # the loss counts other tokens than those that were sampled
    ADVANTAGE_DIFFERS = "advantage_differs"  # an advantage does not follow from the rewards of its group
    FAULT_AS_REWARD = "fault_as_reward"  # an episode that was not judged moves the policy
    UNKNOWN_ROW = "unknown_row"  # a row of the loss is not what any episode sampled
    LOST_ROW = "lost_row"  # an episode was handed to the trainer and never reached the loss
    OLD_LOG_PROBS = "old_log_probs"  # the ratio's denominator is of other weights than it should be
    SAMPLER_DIFFERS = "sampler_differs"  # sampler and trainer disagree about sampled tokens
    EQUAL_REWARDS = "equal_rewards"  # no group's rewards have differed for many steps
    INFRA_FAULTS = "infra_faults"  # more episodes than now and then could not be judged
    NO_CALLS = "no_calls"  # no tool call of the last steps could be read
    NO_CONTEXT_LEFT = "no_context_left"  # every episode ends in its first turn, out of tokens


@dataclass(frozen=True, slots=True)
class Alarm:
    """One finding.

    Args:
        step: updates that the model had received.
        detail: what was seen, what was expected, and what to do about it, in one line.
    """

    step: int
    name: AlarmName
    detail: str


class Alarms:
    """Collects alarms of one process.

    Args:
        path: gets one JSON line for each; None keeps them in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._counts: Counter[AlarmName] = Counter()
        self._new: Counter[AlarmName] = Counter()
        self._raised: list[Alarm] = []

    @property
    def raised(self) -> Sequence[Alarm]:
        """All so far, oldest first."""
        return tuple(self._raised)

    def sound(self, step: int, name: AlarmName, detail: str) -> None:
        """Keep an alarm, see `Alarm`, and say it in the log unless it was said a moment ago."""
        if self._counts[name] % REPEAT == 0:
            logger.warning("step %d: alarm %s: %s", step, name.value, detail)
        self._counts[name] += 1
        self._new[name] += 1
        self._raised.append(Alarm(step, name, detail))
        if self._path is not None:
            line = {"time": round(time.time(), 3), **asdict(self._raised[-1])}
            append_line(self._path, json.dumps(line).encode())

    def take(self) -> dict[str, float]:
        """`alarms/NAME` → how often since the last call."""
        new, self._new = self._new, Counter()
        return {f"alarms/{name.value}": float(count) for name, count in sorted(new.items())}
