"""Do sampler and trainer agree about the tokens that were sampled? If not, why not.

A sampler's log-probs are of the distribution that a token was drawn from; the trainer's own must be of the
same one, or ratios, clips and corrections are about another policy than the one that acted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from sandbox_rl.audit.alarms import AlarmName, Alarms

__all__ = ["SamplerAudit", "SamplerCause"]

CLEAR = 0.5
"""A cause is named when it explains more than this part of the gap."""

EVERY = 10
"""Steps between two searches for the cause of a gap that goes on."""


class SamplerCause(StrEnum):
    """Why, as a sentence."""

    TEMPERATURE = (
        "the sampler's log-probs are without the temperature (a server needs --logprobs-mode "
        "processed_logprobs)"
    )
    TRUNCATION = (
        "the sampler drew from a truncated distribution (top_p, top_k, min_p); training samples the whole one"
    )
    ADAPTER = "the sampler computes without the adapters: they were never delivered or not applied"
    PRECISION = "sampler and trainer compute in different precisions"
    UNKNOWN = (
        "the sampler holds other weights (an earlier version?), or sees other tokens, or reads the model's "
        "configuration in another way"
    )


class SamplerAudit:
    """Watches the gap between sampled and trainer's log-probs.

    Args:
        ceiling: mean gap in nats per token that is an alarm.
    """

    def __init__(self, alarms: Alarms, *, ceiling: float) -> None:
        self._alarms = alarms
        self._ceiling = ceiling
        self.searched = -EVERY
        """The step of the last search for a cause."""

    def look(self, gap: float, step: int, gaps: Callable[[], Mapping[SamplerCause, float]]) -> None:
        """Judge a micro-batch.

        Args:
            gap: mean |trainer - sampler| in nats per sampled token.
            gaps: the same of the worst row under each cause, and under UNKNOWN as things are; costs a
                forward pass and is asked for now and then only.
        """
        if gap <= self._ceiling or step - self.searched < EVERY:
            return
        self.searched = step
        found = dict(gaps())
        present = found.pop(SamplerCause.UNKNOWN, gap)
        cause = min(found, key=lambda c: found[c], default=SamplerCause.UNKNOWN)
        if found.get(cause, present) >= CLEAR * present:
            cause = SamplerCause.UNKNOWN
        self._alarms.sound(
            step,
            AlarmName.SAMPLER_DIFFERS,
            f"sampler and trainer differ by {gap:.3g} nats per sampled token (alarm at "
            f"{self._ceiling:g}): {cause.value}",
        )

    def look_old(self, gap: float, step: int) -> None:
        """Judge the log-probs that ratios are formed with, where weights are still those of the sampling.

        Args:
            gap: mean |present - old| in nats per token, expected to be rounding.
        """
        if gap > self._ceiling:
            self._alarms.sound(
                step,
                AlarmName.OLD_LOG_PROBS,
                f"the old log-probs differ from the present ones by {gap:.3g} nats per token before any "
                "update has happened in between: they are of other weights or other rows",
            )
