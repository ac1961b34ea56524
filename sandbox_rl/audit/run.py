"""The audits of one training run, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.audit.alarms import Alarms
from sandbox_rl.audit.publication import PublicationAudit
from sandbox_rl.audit.sampler import SamplerAudit
from sandbox_rl.audit.samples import SampleAudit
from sandbox_rl.audit.updates import UpdateAudit

__all__ = ["RunAudit"]


@dataclass(frozen=True, slots=True)
class RunAudit:
    """What looks at every step.

    Args:
        updates: a callback that the trainer must get.
    """

    alarms: Alarms
    updates: UpdateAudit
    samples: SampleAudit
    sampler: SamplerAudit
    publications: PublicationAudit

    @classmethod
    def start(
        cls,
        path: Path | None = None,
        *,
        total: Callable[[Sequence[float]], Sequence[float]] = list,
        masks_truncated: bool = False,
        mismatch_alarm: float = 0.1,
    ) -> RunAudit:
        """Audits that write their alarms to `path`.

        Args:
            total, masks_truncated: see `SampleAudit`.
            mismatch_alarm: mean gap between sampler and trainer that is an alarm, nats per token.
        """
        alarms = Alarms(path)
        samples = SampleAudit(alarms, total=total, masks_truncated=masks_truncated)
        return cls(
            alarms,
            UpdateAudit(alarms, lambda: samples.trained_here),
            samples,
            SamplerAudit(alarms, ceiling=mismatch_alarm),
            PublicationAudit(alarms, ceiling=mismatch_alarm),
        )

    def take(self, step: int) -> dict[str, float]:
        """The metrics of a step that has ended; a collective where several processes train."""
        return self.samples.take(step) | self.updates.take() | self.publications.take() | self.alarms.take()
