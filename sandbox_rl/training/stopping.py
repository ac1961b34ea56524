"""A clean end on a signal: to any process of a run, or to the launcher of them.

Episodes that run are given up at once, whatever is left of them; an update that is computed is finished.
Then the run saves and ends. Nothing happens within a signal handler but that it is noted: a thread looks at
that, tells the other processes through the store of their group, and ends the episodes of its own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.training.agreement import any_of

__all__ = ["LAUNCHER", "FinishOnSignal", "signals_as_before"]

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.2
LAUNCHER = "SANDBOX_RL_LAUNCHER"
"""Environment variable: the process that `sandbox-rl train` has started the others from."""
_KEY = "stop"
_LAUNCHERS = {
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.launch",
    "torchrun",
    "torch.distributed.run",
}
"""Programs and modules that start the processes of a run, and are not to leave them behind."""
_PARENT_DEATH = 1  # prctl(2)


class FinishOnSignal(TrainerCallback):  # type: ignore[misc]
    """On SIGTERM (pre-emption) or SIGINT to any process saves a checkpoint and ends training on all of them.

    Further signals change nothing.
    """

    def __init__(self) -> None:
        self.received = False
        """Whether this process was told to, by a signal or another process."""
        self.stopped = False
        """Whether training ended for that, the same on all processes."""
        self._previous: dict[int, Any] = {}
        self._done = threading.Event()
        self._watch: threading.Thread | None = None

    def install(self, give_up: Callable[[], None]) -> None:
        """Handle the signals from now on; only the main thread may, elsewhere nothing happens.

        Args:
            give_up: ends what need not be finished; called in another thread, once.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        if _launched():  # `accelerate launch` leaves its only process running when a signal ends it
            ctypes.CDLL(None).prctl(_PARENT_DEATH, int(signal.SIGTERM), 0, 0, 0)
        self._watch = threading.Thread(target=self._look, args=(give_up,), name="signals", daemon=True)
        self._watch.start()

    def remove(self) -> None:
        """Handle them no longer; after a first one, others still have no effect (see `signals_as_before`)."""
        self._done.set()
        if self._watch is not None:
            self._watch.join()
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self.received else handler)
        self._previous = {}

    def agree(self) -> None:
        """All ranks have agreed to end, whichever of them received the signal."""
        self.stopped = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def _look(self, give_up: Callable[[], None]) -> None:
        shared = _Shared()
        while not self._done.wait(LOOK_S):
            if self.received:
                shared.tell()
            elif shared.told():
                self.received = True
            if self.received:
                give_up()
                return

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask TRL to save and stop."""
        self.stopped = self.stopped or any_of(self.received)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True


def _launched() -> bool:
    """Whether this process is a launcher's: it may outlive a shell, or whatever else has started it."""
    if os.environ.get(LAUNCHER) == str(os.getppid()):
        return True
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(word in _LAUNCHERS or Path(word).name in _LAUNCHERS for word in words[:5])


@contextmanager
def signals_as_before() -> Iterator[None]:
    """For whoever lives on after a run: its handlers are what they were, also if the run was stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Shared:
    """One word between the processes of a run; nothing where there is one."""

    def __init__(self) -> None:
        self._store: Any = None
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            store = distributed.distributed_c10d._get_default_store()
            self._store = distributed.distributed_c10d.PrefixStore("sandbox_rl", store)

    def tell(self) -> None:
        """Say it to all."""
        self._with_store(lambda store: store.set(_KEY, "1"))

    def told(self) -> bool:
        """Whether any process has said it."""
        return bool(self._with_store(lambda store: store.check([_KEY])))

    def _with_store(self, ask: Callable[[Any], Any]) -> Any:
        if self._store is None:
            return None
        try:
            return ask(self._store)
        except RuntimeError as error:  # whoever keeps the store has ended; the next exchange says so
            logger.debug("the store of the processes is gone: %s", error)
            self._store = None
            return None
