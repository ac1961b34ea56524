"""The trainer's side of a served policy: which tensors to publish, when, and under which version.

TRL calls `TrainerSync.sync_weights` on every process before it asks for rollouts with newer weights;
`SandboxGRPOTrainer.sync_policy` does before evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState

from sandbox_rl.training.probe import PublicationProbe
from sandbox_rl.training.publication.merge import checkpoint_tensors
from sandbox_rl.training.publication.transfer import WeightPublisher

__all__ = ["TrainerSync", "WeightSync"]


class WeightSync:
    """Publishes the trainer's weights on the main process, with all processes taking part.

    Args:
        publisher: on the main process; None elsewhere.
        state: of accelerate.
        sleep: the servers sleep between `rest` and `publish`.
    """

    def __init__(
        self, publisher: WeightPublisher | None, state: PartialState, *, sleep: bool = False
    ) -> None:
        self._publisher = publisher
        self._state = state
        self._sleep = sleep
        self.asleep = False
        """Whether the servers sleep and need a `publish` before anything is sampled, the same everywhere."""
        self.version = 0
        """Updates that the served weights have received, the same on every process."""

    def served(self, version: int) -> None:
        """Take note of what the servers serve."""
        self.version = version

    def publish(self, model: Any, version: int) -> None:
        """Publish the weights of `model`, without wrappers of data parallelism; wakes servers that sleep.

        Raises:
            EngineFault: a server did not take them; it stays paused.
        """
        self._state.wait_for_everyone()  # no rank may still be rolling out with the old weights
        if self.asleep and torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the update has freed is the servers' now
        tensors = checkpoint_tensors(model)
        if self._publisher is None:
            for _ in tensors:  # gathering a sharded tensor takes every rank
                pass
        else:
            self._publisher.publish(tensors, version=version)
        self.asleep = False
        self.served(version)
        self._state.wait_for_everyone()

    def rest(self) -> None:
        """The rollouts of this process are done: have the servers give their memory back, if they should."""
        if self.asleep or not self._sleep:
            return
        self._state.wait_for_everyone()
        if self._publisher is not None:
            self._publisher.sleep()
        self.asleep = True
        self._state.wait_for_everyone()


@dataclass(frozen=True, slots=True)
class TrainerSync:
    """What TRL calls its `vllm_generation`.

    Args:
        model: gives the weights, without wrappers of data parallelism.
        step: gives their number of updates.
        probe: looks at some of the publications.
    """

    sync: WeightSync
    model: Callable[[], Any]
    step: Callable[[], int]
    probe: PublicationProbe | None = None

    def sync_weights(self) -> None:
        """Publish the weights as they are now."""
        model, version = self.model(), self.step()
        looked = (
            nullcontext()
            if self.probe is None
            else self.probe.around(model, version, asleep=self.sync.asleep)
        )
        with looked:
            self.sync.publish(model, version)
