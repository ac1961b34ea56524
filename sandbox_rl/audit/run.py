"""The audits of one training run, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.audit.alarms import Alarms
from sandbox_rl.audit.faults import FaultAudit
from sandbox_rl.audit.rows import Advantages
from sandbox_rl.audit.sampler import PublicationAudit, SamplerAudit
from sandbox_rl.audit.samples import PackedAudit, SampleAudit
from sandbox_rl.audit.shares import TokenShares
from sandbox_rl.audit.updates import UpdateAudit
from sandbox_rl.outputs import restoring

STATE_FILE = "audit.json"
"""Name of the state's file in a checkpoint."""


@dataclass(frozen=True, slots=True)
class RunAudit:
    """What looks at every step.

    Args:
        updates: a callback that the trainer must get.
        shares: what became of all tokens: in synchronous training by `samples`, else by `packed`.
    """

    alarms: Alarms
    updates: UpdateAudit
    shares: TokenShares
    samples: SampleAudit
    packed: PackedAudit
    sampler: SamplerAudit
    publications: PublicationAudit
    faults: FaultAudit

    @classmethod
    def start(
        cls,
        path: Path | None = None,
        *,
        total: Callable[[Sequence[float]], Sequence[float]] = list,
        masks_truncated: bool = False,
        advantages: Advantages | None = None,
        group_size: int = 0,
        mismatch_alarm: float = 0.1,
    ) -> RunAudit:
        """Audits that write their alarms to `path`.

        Args:
            total, masks_truncated, advantages, group_size: see `TokenShares`, `SampleAudit`, `PackedAudit`.
            mismatch_alarm: mean gap between sampler and trainer that is an alarm, nats per token.
        """
        alarms = Alarms(path)
        shares = TokenShares(alarms, total)
        return cls(
            alarms,
            UpdateAudit(alarms, lambda: shares.trained_here),
            shares,
            SampleAudit(alarms, shares, masks_truncated=masks_truncated, advantages=advantages),
            PackedAudit(alarms, shares, advantages=advantages, size=group_size),
            SamplerAudit(alarms, ceiling=mismatch_alarm),
            PublicationAudit(alarms, ceiling=mismatch_alarm),
            FaultAudit(alarms),
        )

    def save(self, checkpoint: Path) -> None:
        """Write into a checkpoint's directory what later steps are judged by."""
        state = {"shares": self.shares.state(), "searched": self.sampler.searched}
        (checkpoint / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ModelError: its file is missing or not one of ours.
        """
        advice = "remove that checkpoint to go on from the one before"
        with restoring(checkpoint / STATE_FILE, "what the audits knew", advice) as state:
            self.shares.restore(state["shares"])
            self.sampler.searched = int(state["searched"])

    def take(self, step: int) -> dict[str, float]:
        """The metrics of a step that has ended; a collective where several processes train."""
        self.faults.look(step)
        return self.shares.take(step) | self.updates.take() | self.publications.take() | self.alarms.take()
