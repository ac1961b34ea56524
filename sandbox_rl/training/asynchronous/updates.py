"""Where the asynchronous trainer's data comes from: one item per update, the same moment on every rank.

The main process waits for rollouts. The other ranks wait with it in rounds of a second, so that whatever one
rank knows, all act on: a signal, a failure of the rollouts, or the next update. There is no data loader of
accelerate's in between: it would fetch one micro-batch ahead of the update that is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from sandbox_rl.errors import InfraFault
from sandbox_rl.training.agreement import everywhere

__all__ = ["Composed", "Source", "UpdateStream"]

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


class UpdateStream:
    """Iterates over updates; each is this rank's micro-batches. Ends when a rank was asked to stop.

    Args:
        source: on the main process; None elsewhere.
        stop: whether this rank was asked to stop.
        stopped: called on every rank when they have agreed to.
    """

    def __init__(
        self,
        source: Source | None,
        state: PartialState,
        *,
        stop: Callable[[], bool] = lambda: False,
        stopped: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._state = state
        self._stop = stop
        self._stopped = stopped
        self.wait_s = 0.0
        """Seconds waited since TRL last logged and reset it."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            started = time.monotonic()
            update = self._next()
            self.wait_s += time.monotonic() - started
            if update is None:
                return
            rank = slice(self._state.process_index, self._state.process_index + 1)
            yield {
                "micro_batches": [
                    {key: value[rank] for key, value in batch.items()} for batch in update.micro_batches
                ],
                "samples": [row[self._state.process_index] for row in update.samples],
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
            if self._source is not None:
                try:
                    update = self._source.poll(ROUND_S)
                except InfraFault as error:
                    failure = error
            if self._state.num_processes > 1:
                message: list[Any] = [(update, failure)]
                broadcast_object_list(message)
                update, failure = message[0]
            if failure is not None:
                raise everywhere(failure)
            if update is not None:
                return update

    def asked_to_stop(self) -> bool:
        """Whether any rank was; then all take note. Every rank calls it."""
        mine = [self._stop()]
        asked = any(gather_object(mine) if self._state.num_processes > 1 else mine)
        if asked:
            self._stopped()
        return asked
