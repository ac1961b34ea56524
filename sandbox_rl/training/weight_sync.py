"""The trainer's side of a served policy: which tensors to publish, when, and under which version.

TRL calls `sync_weights` on every process before it asks for rollouts with newer weights; evaluation does
so through `SandboxGRPOTrainer.sync_policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import PartialState

from sandbox_rl.training.weight_merge import checkpoint_tensors
from sandbox_rl.training.weight_transfer import WeightPublisher

__all__ = ["WeightSync"]


class WeightSync:
    """Publishes the trainer's weights on the main process, with all processes taking part.

    Args:
        publisher: on the main process; None elsewhere.
        state: of accelerate.
    """

    def __init__(self, publisher: WeightPublisher | None, state: PartialState) -> None:
        self._publisher = publisher
        self._state = state
        self._model: Callable[[], Any] | None = None
        self._step: Callable[[], int] | None = None
        self._ready = False
        self.version = 0
        """Updates that the served weights have received, the same on every process."""

    def served(self, version: int) -> None:
        """Take note of what the servers serve."""
        self.version = version

    def attach(self, model: Callable[[], Any], step: Callable[[], int]) -> None:
        """Say where the weights are, without wrappers of data parallelism, and their number of updates."""
        self._model = model
        self._step = step

    def sync_weights(self) -> None:
        """Publish the weights as they are now.

        Raises:
            EngineFault: a server did not take them; it stays paused.
        """
        assert self._model is not None, "attached first"
        assert self._step is not None, "attached first"
        model, version = self._model(), self._step()
        self._state.wait_for_everyone()  # no rank may still be rolling out with the old weights
        tensors = checkpoint_tensors(model)
        if self._publisher is None:
            for _ in tensors:  # gathering a sharded tensor takes every rank
                pass
        else:
            if not self._ready:
                self._publisher.init_weight_transfer()
                self._ready = True
            self._publisher.publish(tensors, version=version)
        self.served(version)
        self._state.wait_for_everyone()
