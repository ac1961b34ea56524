"""What trainers publish weights to, whichever way their policy is sampled."""

from __future__ import annotations

import ctypes
import multiprocessing
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the last publication took, in seconds."""

    gather_s: float = 0.0
    pause_s: float = 0.0
    send_s: float = 0.0
    resume_s: float = 0.0

    @property
    def stall_s(self) -> float:
        """From the pause to the resume, as episodes saw it."""
        return self.pause_s + self.send_s + self.resume_s


class Weights(ABC):
    """What a trainer publishes to, however its policy is sampled. Every process of a run has one."""

    served: bool
    """Whether servers sample, whose log-probs differ a little from the trainer's."""

    def __init__(self) -> None:
        self.version = shared_version()
        """For readers, in this process or a child: updates that the published weights have received."""
        self.asleep = False
        """Whether servers sleep and need a `publish` before anything is sampled, the same everywhere."""
        self.timing = Timing()
        """Of the last publication of this process."""

    @abstractmethod
    def current(self, step: int) -> bool:
        """Whether what is sampled with are the weights after `step` updates."""

    @abstractmethod
    def publish(self, model: nn.Module, step: int) -> int:
        """Have the policy sample with the weights of `model` from now on; every process calls it.

        Args:
            model: without wrappers of data parallelism.
            step: updates that it has received; becomes the version.

        Raises:
            EngineFault: on every process, when a server did not take them; it stays paused.
        """

    def sleep(self) -> None:  # noqa: B027 (where no server sleeps, a model's lease tells whose turn it is)
        """The rollouts of this process are done: have servers give their memory back, if they should."""


class UnsentWeights(Weights):
    """Noted and sent to nobody: a policy samples from the very model that is trained, or what was sampled is
    recorded.

    Args:
        served: whether servers have sampled; the model as it is loaded counts as not published then.
    """

    def __init__(self, *, served: bool = False) -> None:
        super().__init__()
        self.served = served
        self.version.value = -1 if served else 0

    def current(self, step: int) -> bool:
        """Whether the version is `step`."""
        return self.version.value == step

    def publish(self, model: nn.Module, step: int) -> int:
        """Take note."""
        self.version.value = step
        return step


def shared_version() -> ctypes.c_longlong:
    """A number that a spawned process reads as well; without a lock, which a killed reader would keep."""
    return multiprocessing.get_context("spawn").RawValue(ctypes.c_longlong, 0)
