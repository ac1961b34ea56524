"""What became of the tokens of a step, as shares of what was sampled; the alarms about a whole step."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.audit.rows import TokenClass

QUIET_STEPS = 3
"""Steps in a row without a trained token, or with half the usual share, after which it is no accident."""

FEW_STEPS = 10
"""Steps up to which equal rewards of all groups may be chance."""

HISTORY = 10
"""Steps that say what share of tokens masks usually take."""

_BY_CHOICE = (TokenClass.TRAINED, TokenClass.ZERO_ADVANTAGE, TokenClass.OBSERVED)


class TokenShares:
    """Adds up tokens by class, of one process, and says what a step came to, of all.

    Args:
        total: sums a list of numbers over all processes; every process must call `take` equally often.
    """

    def __init__(self, alarms: Alarms, total: Callable[[Sequence[float]], Sequence[float]] = list) -> None:
        self._alarms = alarms
        self._total = total
        self._tokens: Counter[TokenClass] = Counter()
        self._due = [0.0, 0.0]
        self._in_loss = [0.0, 0.0]
        self._all = Counter[TokenClass]()
        self._masked = deque[float](maxlen=HISTORY)
        self._quiet = 0
        self._fallen = 0
        self.steps = 0
        """Steps that were looked at."""
        self.trained_here = 0
        """Tokens of this process with a gradient so far, those of the step that is going on included."""
        self.trained_tokens = 0.0
        """Tokens with a gradient so far, over all processes."""

    def state(self) -> dict[str, Any]:
        """What later steps are judged by; as JSON, the same on all processes."""
        return {
            "all": dict(self._all),
            "masked": list(self._masked),
            "quiet": self._quiet,
            "fallen": self._fallen,
            "steps": self.steps,
            "trained_tokens": self.trained_tokens,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._all = Counter({TokenClass(name): count for name, count in state["all"].items()})
        self._masked.extend(state["masked"])
        self._quiet, self._fallen, self.steps = state["quiet"], state["fallen"], state["steps"]
        self.trained_tokens = state["trained_tokens"]

    def add(self, name: TokenClass, tokens: int) -> None:
        """Count tokens in a class."""
        self._tokens[name] += tokens
        self.trained_here += tokens if name is TokenClass.TRAINED else 0

    def due(self, tokens: int, weight: float) -> None:
        """Tokens that an update is composed of, and the sum of their |advantages|, on any process."""
        self._due = [self._due[0] + tokens, self._due[1] + weight]

    def in_loss(self, tokens: int, weight: float) -> None:
        """The same of what a loss is taken over; over all processes both must be equal at a step's end."""
        self._in_loss = [self._in_loss[0] + tokens, self._in_loss[1] + weight]

    def take(self, step: int) -> dict[str, float]:
        """The shares since the last call, over all processes; sounds the alarms about a whole step."""
        names = list(TokenClass)
        own = [float(self._tokens[name]) for name in names]
        *summed, due, weight_due, in_loss, weight = self._total([*own, *self._due, *self._in_loss])
        counts = dict(zip(names, summed, strict=True))
        self._tokens, self._due, self._in_loss = Counter(), [0.0, 0.0], [0.0, 0.0]
        if due != in_loss:
            self._alarms.sound(
                step,
                AlarmName.MASK_DIFFERS,
                f"the loss is taken over {in_loss:.0f} tokens, {due:.0f} were sampled for this update",
            )
        elif abs(weight - weight_due) > 1e-3 * weight_due:
            self._alarms.sound(
                step,
                AlarmName.ADVANTAGE_DIFFERS,
                f"the |advantages| in the loss add up to {weight:.4g}, those of this update to "
                f"{weight_due:.4g}; something changes them on their way",
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
                step,
                AlarmName.NOTHING_TRAINED,
                f"no token had a gradient in {self._quiet} steps: {shares[largest]:.0%} of those sampled "
                f"are {largest.value}",
            )
        usual = median(self._masked) if len(self._masked) == HISTORY else None
        # A few faults among few episodes halve the share of one step; a mask gone wrong stays.
        fell = usual is not None and 1 - masked < 0.5 * (1 - usual)
        self._fallen = self._fallen + 1 if fell else 0
        if usual is not None and self._fallen >= QUIET_STEPS:
            worst = max((share, n) for n, share in reasons.items())[1]
            self._alarms.sound(
                step,
                AlarmName.TRAINED_SHARE_FELL,
                f"{masked:.0%} of the sampled tokens are masked, usually {usual:.0%}; the most "
                f"({reasons[worst]:.0%}) as {worst.value}",
            )
        self._masked.append(masked)
