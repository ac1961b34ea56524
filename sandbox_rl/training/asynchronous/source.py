"""Composes updates out of what the rollout process sends; on the main process."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sandbox_rl.audit.faults import FaultAudit
from sandbox_rl.audit.packed import PackedAudit
from sandbox_rl.audit.rows import TokenClass
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.policies.base import WeightVersion
from sandbox_rl.training.asynchronous.admission import Admission
from sandbox_rl.training.asynchronous.compositions import CompositionLog
from sandbox_rl.training.asynchronous.rows import age_metrics, collator, micro_batches, samples_of, tensors_of
from sandbox_rl.training.asynchronous.updates import Composed
from sandbox_rl.training.samples import FinishedGroup

__all__ = ["RolloutSource", "Rollouts"]

CLASS_OF = {
    SampleEnd.NOT_JUDGED: TokenClass.NOT_JUDGED,
    SampleEnd.OVERLONG: TokenClass.OVERLONG,
    SampleEnd.NO_TOKENS: TokenClass.NOT_JUDGED,
    SampleEnd.EQUAL_REWARDS: TokenClass.REFILLED,  # the next group has taken its place
}
"""What the audit calls the tokens of a sample that is left out."""

logger = logging.getLogger(__name__)


class Rollouts(Protocol):
    """The part of a rollout worker that gives groups."""

    @property
    def rollout_buffer(self) -> Any:
        """A queue of `FinishedGroup`."""
        ...

    def admit(self, numbers: Sequence[int]) -> None:
        """Let groups start."""
        ...

    def check_health(self, stale_after_s: float) -> None:
        """Whether it still works.

        Raises:
            InfraFault: it does not.
        """
        ...


class RolloutSource:
    """A `Source` of updates.

    Args:
        step: gives the number of finished updates.
        version: of the weights that are sampled with.
        metrics: TRL's sink, name → values; ours are added to it.
        token_budget: tokens of a row.
        audit: is told what updates are composed of.
        faults: is told of each episode.
        log: is told what arrives, and what updates are composed of.
        stale_after_s: seconds without a beat after which the rollouts count as hung.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        admission: Admission,
        *,
        step: Callable[[], int],
        version: WeightVersion,
        metrics: Mapping[str, list[Any]],
        ranks: int,
        token_budget: int,
        pad_token_id: int,
        stale_after_s: float,
        audit: PackedAudit | None = None,
        faults: FaultAudit | None = None,
        log: CompositionLog | None = None,
    ) -> None:
        self._audit = audit
        self._faults = faults
        self._log = log
        self._rollouts = rollouts
        self._admission = admission
        self._step = step
        self._version = version
        self._metrics = metrics
        self._ranks = ranks
        self._token_budget = token_budget
        self._pad_token_id = pad_token_id
        self._stale_after_s = stale_after_s
        self._told = False

    def poll(self, timeout_s: float) -> Composed | None:
        """The next update, or None if it is not ready within `timeout_s`.

        Raises:
            InfraFault: the rollouts are over.
        """
        deadline = time.monotonic() + timeout_s
        step = self._step()
        while True:
            self._take_all()
            self._rollouts.admit(self._admission.admit(step, self._version.value))
            if self._admission.ready(step):
                return self._compose(step)
            try:
                self._take(self._rollouts.rollout_buffer.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                self._rollouts.check_health(self._stale_after_s)
                return None

    def _take_all(self) -> None:
        while True:
            try:
                self._take(self._rollouts.rollout_buffer.get_nowait())
            except queue.Empty:
                return

    def _take(self, group: FinishedGroup) -> None:
        if self._log is not None:
            self._log.arrived(group.number, self._admission.version_of(group.number))
        self._admission.arrive(group)
        if self._faults is not None:
            for index, sample in enumerate(group.record.samples):
                if sample.end is not SampleEnd.OVERLONG:
                    self._faults.add(group.faults.get(index))
        for why in CLASS_OF:
            # A zero too: TRL's sum over what was logged would otherwise miss that nothing was left out.
            count = sum(reason is why for reason in group.left_out.values())
            self._metrics[f"left_out/{why}_total"].append(float(count))
        if self._audit is not None:
            for index, why in group.left_out.items():
                self._audit.left_out(CLASS_OF[why], group.left_tokens.get(index, 0))

    def _compose(self, step: int) -> Composed:
        groups = self._admission.compose(step)
        if (idle := self._admission.idle) > 0 and not self._told:
            self._told = True
            logger.warning(
                "grpo.max_staleness lets %d groups be under way, %d fewer than rollout.concurrency admits; "
                "to use it, raise that, or grpo.gradient_accumulation_steps for larger updates",
                self._admission.places,
                idle,
            )
        self._metrics["off_policy/places"].append(float(self._admission.places))
        # While this update is computed others are sampled: what it took freed their places.
        self._rollouts.admit(self._admission.admit(step, self._version.value))
        for name, value in age_metrics((s for group in groups for s in group.samples), step).items():
            self._metrics[name].append(value)
        collate = collator(
            self._pad_token_id, self._ranks, metrics=self._metrics, token_budget=self._token_budget
        )
        if self._audit is not None:
            self._audit.composed((s for group in groups for s in group.samples), step)
        rows = micro_batches(groups, ranks=self._ranks, token_budget=self._token_budget)
        tensors = tensors_of(rows, groups, step, collate=collate)
        if self._log is not None:
            self._log.composed(step + 1, [group.number for group in groups], rows, tensors)
        return Composed(tensors, samples_of(rows))
