"""A clean end on a signal: to any process of a run, or to the launcher of them.

Ctrl-C (SIGINT) finishes the step, SIGTERM (pre-emption) gives up its episodes and finishes an update that is
computed; then the run saves and ends. Ctrl-C again ends it at once, with what was saved before. Nothing
happens within a signal handler but an exception in that last case: a thread reads which signals came, tells
the other processes through the store of their group, and ends the episodes of its own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

from torch import distributed
from transformers import TrainerCallback, TrainerControl

from sandbox_rl.training.agreement import any_of

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_S = 0.2
SAME_PRESS_S = 0.3
"""A Ctrl-C reaches a process twice where something between it and the terminal hands it on as well."""
LEAVE_S = 10.0
"""For freeing everything before a run ends at once; then the process ends, and kernel and spawner do it."""
INTERRUPTED = 128 + signal.SIGINT
LAUNCHER = "SANDBOX_RL_LAUNCHER"
"""Environment variable: the process that `sandbox-rl train` has started the others from."""
_KEY = "stop-"
_LAUNCHERS = {
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.launch",
    "torchrun",
    "torch.distributed.run",
}
"""Programs and modules that start the processes of a run, and are not to leave them behind."""
_PARENT_DEATH = 1  # prctl(2)


class Asked(IntEnum):
    """What a run was asked to do; more replaces less."""

    NOTHING = 0
    STEP = 1
    """Finish the step, save and end."""
    UPDATE = 2
    """Give up the episodes of the step, finish an update that is computed, save and end."""
    NOW = 3
    """End, with what was saved before."""


class EndedNow(KeyboardInterrupt):
    """The run ends at once, and everything about it has been said."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has started a run and has this process for nothing else, so that it may be ended.

    Args:
        say: one line, now, to a person.
        go_on: the command that goes on with a run of this directory.
    """

    say: Callable[[str], None]
    go_on: Callable[[Path], str]


class FinishOnSignal(TrainerCallback):  # type: ignore[misc]
    """On SIGINT or SIGTERM to any process saves a checkpoint and ends training on all of them."""

    def __init__(self) -> None:
        self.asked = Asked.NOTHING
        """By a signal to this process or to another."""
        self.stopped = False
        """Whether training ended for that, the same on all processes."""
        self._previous: dict[int, Any] = {}
        self._done = threading.Event()
        self._watch: threading.Thread | None = None
        self._wakeup = -1
        self._raised = False

    def install(
        self, give_up: Callable[[bool], None], *, run: Path | None = None, owner: Owner | None = None
    ) -> None:
        """Handle the signals from now on; only the main thread may, elsewhere nothing happens.

        Args:
            give_up: ends what need not be finished, episodes of the step too if that is so; called in another
                thread.
            run: the run's directory, for `owner`.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        parent = _launcher()
        self._presses = Presses(hurried=parent == "foreign")
        self._wakeup = signal.set_wakeup_fd(self._presses.writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        if parent is not None:  # `accelerate launch` leaves its only process running when a signal ends it
            ctypes.CDLL(None).prctl(_PARENT_DEATH, int(signal.SIGTERM), 0, 0, 0)
        self._watch = threading.Thread(
            target=self._look, args=(give_up, run, owner), name="signals", daemon=True
        )
        self._watch.start()

    def remove(self) -> None:
        """Handle them no longer; after a first one, others still have no effect (see `signals_as_before`)."""
        self._done.set()
        if self._watch is not None:
            self._watch.join()
            signal.set_wakeup_fd(self._wakeup)
            self._presses.close()
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self.asked else handler)
        self._previous = {}

    def agree(self) -> None:
        """All ranks have agreed to end, whichever of them received the signal."""
        self.stopped = True

    def ask(self, for_what: Asked) -> None:
        """As a signal does."""
        self.asked = max(self.asked, for_what)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is Asked.NOW and not self._raised:
            self._raised = True  # once: what is freed meanwhile is not to be cut
            raise EndedNow

    def _look(self, give_up: Callable[[bool], None], run: Path | None, owner: Owner | None) -> None:
        shared, acted = _Shared(), Asked.NOTHING
        while not self._done.is_set():
            self.ask(self._presses.read(LOOK_S))
            self.ask(shared.told())
            if self.asked is acted:
                continue
            acted = self.asked
            shared.tell(acted)
            if owner is not None:
                how = f". Go on with: {owner.go_on(run)}" if acted is Asked.NOW and run is not None else ""
                with suppress(OSError, ValueError):  # nobody may be there to read it any more
                    owner.say(_TOLD[acted] + how)
            if acted is Asked.NOW:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                self._leave(owner is not None)
            else:
                give_up(acted is Asked.UPDATE)

    def _leave(self, owned: bool) -> None:
        """Everything is being freed in the main thread: wait for that, but not for long."""
        if self._done.wait(LEAVE_S) or not owned:
            return
        with suppress(OSError):
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
        os._exit(INTERRUPTED)

    def on_step_end(self, args: object, state: object, control: TrainerControl, **kwargs: Any) -> None:
        """Ask TRL to save and stop."""
        self.stopped = self.stopped or any_of(bool(self.asked))
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True


_TOLD = {
    Asked.STEP: "Interrupted: the step that runs is finished and saved, then the run ends; Ctrl-C again ends "
    "it at once",
    Asked.UPDATE: "Asked to end: the episodes that run are given up, what is finished is saved",
    Asked.NOW: "Interrupted again: the run ends at once",
}


class Presses:
    """What signals ask for, read in another thread.

    Python's handlers wait for the main thread, which may be in the middle of a backward pass; the number of a
    signal is written to a descriptor when it comes.

    Args:
        hurried: whoever hands on a Ctrl-C kills the process half a minute later, as torch's launcher does.
    """

    def __init__(self, *, hurried: bool) -> None:
        self._once = Asked.UPDATE if hurried else Asked.STEP
        self._pressed_at: float | None = None
        self._reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()  # `select` ends at 1,024 descriptors
        self._poll.register(self._reader, select.POLLIN)

    def read(self, wait_s: float) -> Asked:
        """The most that the signals ask for that come within that time."""
        found = Asked.NOTHING
        if self._poll.poll(1000 * wait_s):
            for number in os.read(self._reader, 4096):
                if number == signal.SIGTERM:
                    found = max(found, Asked.UPDATE)
                elif number == signal.SIGINT:
                    found = max(found, self._interrupt(time.monotonic()))
        return found

    def close(self) -> None:
        """Nothing is written to it any more."""
        os.close(self._reader)
        os.close(self.writer)

    def _interrupt(self, now: float) -> Asked:
        if self._pressed_at is None:
            self._pressed_at = now
        return self._once if now - self._pressed_at < SAME_PRESS_S else Asked.NOW


def end_with_launcher() -> None:
    """Have the kernel end this process with the launcher that started it, also while neither is ready.

    To be called by a process of a run before anything that takes long.

    Raises:
        SystemExit: the launcher of `sandbox-rl train` has ended already.
    """
    if _launcher() is not None:
        ctypes.CDLL(None).prctl(_PARENT_DEATH, int(signal.SIGTERM), 0, 0, 0)
    if "WORLD_SIZE" in os.environ and os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        raise SystemExit(128 + signal.SIGTERM)


def _launcher() -> str | None:
    """Whose process has started this one, if a launcher: it may outlive a shell, or whatever started it."""
    if os.environ.get(LAUNCHER) == str(os.getppid()):
        return "ours"
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    launched = any(word in _LAUNCHERS or Path(word).name in _LAUNCHERS for word in words[:5])
    return "foreign" if launched else None


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
    """What was asked for, between the processes of a run; nothing where there is one."""

    def __init__(self) -> None:
        self._store: Any = None
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            store = distributed.distributed_c10d._get_default_store()
            self._store = distributed.distributed_c10d.PrefixStore("sandbox_rl", store)

    def tell(self, asked: Asked) -> None:
        """Say it to all."""
        self._ask("set", _KEY + asked.name, "1")

    def told(self) -> Asked:
        """The most that any process has said."""
        said = [asked for asked in _TOLD if self._ask("check", [_KEY + asked.name])]
        return max(said, default=Asked.NOTHING)

    def _ask(self, method: str, *args: Any) -> Any:
        """What the store answers; None where there is none."""
        if self._store is None:
            return None
        try:
            return getattr(self._store, method)(*args)
        except RuntimeError as error:  # whoever keeps the store has ended; the next exchange says so
            logger.debug("the store of the processes is gone: %s", error)
            self._store = None
            return None
