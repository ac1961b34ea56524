"""Where the asynchronous trainer's data comes from: one item per update, the same moment on every rank.

The main process composes updates out of what the rollout process sends. The other ranks wait with it in
rounds of a second, so that whatever one rank knows, all act on: a signal, a failure of the rollouts, or the
next update. There is no data loader of accelerate's in between: it would fetch one micro-batch ahead of the
update that is computed.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from sandbox_rl.audit.rows import TokenClass
from sandbox_rl.audit.run import RunAudit
from sandbox_rl.errors import InfraFault
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.policies.base import WeightVersion
from sandbox_rl.training.agreement import any_of, everywhere
from sandbox_rl.training.asynchronous.compositions import CompositionLog
from sandbox_rl.training.asynchronous.progress import Admission
from sandbox_rl.training.asynchronous.rollout_loop import taken
from sandbox_rl.training.asynchronous.rollout_process import RolloutProcess
from sandbox_rl.training.asynchronous.rows import age_metrics, micro_batches, samples_of, tensors_of
from sandbox_rl.training.samples import FinishedGroup

CLASS_OF = {
    SampleEnd.NOT_JUDGED: TokenClass.NOT_JUDGED,
    SampleEnd.OVERLONG: TokenClass.OVERLONG,
    SampleEnd.NO_TOKENS: TokenClass.NOT_JUDGED,
    SampleEnd.EQUAL_REWARDS: TokenClass.REFILLED,  # the next group has taken its place
}
"""What the audit calls the tokens of a sample that is left out."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class RolloutSource:
    """A `Source` of updates.

    Args:
        step: gives the number of finished updates.
        version: of the weights that are sampled with.
        metrics: TRL's sink, name → values; ours are added to it.
        token_budget: tokens of a row.
        audit: is told of each episode, and what updates are composed of.
        log: is told what arrives, and what updates are composed of.
        stale_after_s: seconds without a beat after which the rollouts count as hung.
    """

    rollouts: RolloutProcess
    admission: Admission
    _: KW_ONLY
    step: Callable[[], int]
    version: WeightVersion
    metrics: Mapping[str, list[Any]]
    ranks: int
    token_budget: int
    pad_token_id: int
    stale_after_s: float
    audit: RunAudit | None = None
    log: CompositionLog | None = None
    _told: bool = field(default=False, init=False)

    def poll(self, timeout_s: float) -> Composed | None:
        """The next update, or None if it is not ready within `timeout_s`.

        Raises:
            InfraFault: the rollouts are over.
        """
        deadline = time.monotonic() + timeout_s
        step = self.step()
        while True:
            for group in taken(self.rollouts.rollout_buffer):
                self._take(group)
            self.rollouts.admit(self.admission.admit(step, self.version.value))
            if self.admission.ready(step):
                return self._compose(step)
            try:
                self._take(self.rollouts.rollout_buffer.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                self.rollouts.check_health(self.stale_after_s)
                return None

    def _take(self, group: FinishedGroup) -> None:
        if self.log is not None:
            self.log.arrived(group.number, self.admission.version_of(group.number))
        self.admission.arrive(group)
        for why in CLASS_OF:
            # A zero too: TRL's sum over what was logged would otherwise miss that nothing was left out.
            count = sum(reason is why for reason in group.left_out.values())
            self.metrics[f"left_out/{why}_total"].append(float(count))
        if self.audit is not None:
            for index, sample in enumerate(group.record.samples):
                if sample.end is not SampleEnd.OVERLONG:
                    self.audit.faults.add(group.faults.get(index))
            for index, why in group.left_out.items():
                self.audit.shares.add(CLASS_OF[why], group.left_tokens.get(index, 0))

    def _compose(self, step: int) -> Composed:
        groups = self.admission.compose(step)
        samples = [sample for group in groups for sample in group.samples]
        if (idle := self.admission.idle) > 0 and not self._told:
            self._told = True
            logger.warning(
                "grpo.max_staleness lets %d groups be under way, %d fewer than rollout.concurrency admits; "
                "to use it, raise that, or grpo.gradient_accumulation_steps for larger updates",
                self.admission.places,
                idle,
            )
        self.metrics["off_policy/places"].append(float(self.admission.places))
        # While this update is computed others are sampled: what it took freed their places.
        self.rollouts.admit(self.admission.admit(step, self.version.value))
        for name, value in age_metrics(samples, step).items():
            self.metrics[name].append(value)
        if self.audit is not None:
            self.audit.packed.composed(samples, step)
        rows = micro_batches(groups, ranks=self.ranks, token_budget=self.token_budget)
        tensors = tensors_of(
            rows,
            samples,
            step,
            pad_token_id=self.pad_token_id,
            metrics=self.metrics,
            token_budget=self.token_budget,
        )
        if self.log is not None:
            self.log.composed(step + 1, [group.number for group in groups], rows, tensors)
        return Composed(tensors, samples_of(rows))


ROUND_S = 1.0


@dataclass(frozen=True, slots=True)
class Composed:
    """One update's data.

    Args:
        micro_batches: keys of TRL's `compute_loss`; the first axis of every tensor is the rank.
        samples: see `samples_of`; nothing where nobody asks.
    """

    micro_batches: tuple[dict[str, torch.Tensor], ...]
    samples: tuple[tuple[tuple[tuple[str, int], ...], ...], ...] = ()


class Source(Protocol):
    """Composes updates, on the main process."""

    def poll(self, timeout_s: float) -> Composed | None:
        """The next update, or None if it is not ready within `timeout_s`.

        Raises:
            InfraFault: the rollouts are over; they are an `EngineFault` where they broke.
        """
        ...


@dataclass(eq=False)
class UpdateStream:
    """Iterates over updates; each is this rank's micro-batches. Ends when a rank was asked to stop.

    Args:
        source: on the main process; None elsewhere.
        stop: whether this rank was asked to stop.
        stopped: called on every rank when they have agreed to.
    """

    source: Source | None
    state: PartialState
    _: KW_ONLY
    stop: Callable[[], bool] = lambda: False
    stopped: Callable[[], None] = lambda: None
    wait_s: float = field(default=0.0, init=False)
    """Seconds waited since TRL last logged and reset it."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            started = time.monotonic()
            update = self._next()
            self.wait_s += time.monotonic() - started
            if update is None:
                return
            rank = slice(self.state.process_index, self.state.process_index + 1)
            yield {
                "micro_batches": [
                    {key: value[rank] for key, value in batch.items()} for batch in update.micro_batches
                ],
                "samples": [row[self.state.process_index] for row in update.samples],
            }

    def _next(self) -> Composed | None:
        """The next update; None once all ranks have agreed to stop.

        Raises:
            InfraFault: on every rank, when the rollouts are over.
        """
        while True:
            update: Composed | None = None
            failure: InfraFault | None = None
            if self.asked_to_stop():
                return None
            if self.source is not None:
                try:
                    update = self.source.poll(ROUND_S)
                except InfraFault as error:
                    failure = error
            message: list[Any] = [(update, failure)]
            broadcast_object_list(message)
            update, failure = message[0]
            if failure is not None:
                raise everywhere(failure)
            if update is not None:
                return update

    def asked_to_stop(self) -> bool:
        """Whether any rank was; then all take note. Every rank calls it."""
        asked = any_of(self.stop())
        if asked:
            self.stopped()
        return asked
