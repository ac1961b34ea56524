"""Who uses a model that is sampled and trained in one process: one of the two at a time.

A sampler puts the model into evaluation mode and reads its weights; a trainer looks at that mode and writes
them. Samplers run in threads of their own, and a turn may be given up (its time is over, its group was cut)
while its tokens are still being computed. So sampling is only possible within a window, and a window ends
when no sampler has the model any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox_rl.errors import EngineFault

LET_GO_TIMEOUT_S = 600.0
"""How long a sampler may need to let go: the forward pass that it is in, at most a whole prompt's."""


class ModelLease:
    """Windows in which a model may be sampled. Safe to use from any thread.

    Args:
        always: one that nobody trains may be sampled at any time.
    """

    def __init__(self, *, always: bool = False, timeout_s: float = LET_GO_TIMEOUT_S) -> None:
        self._changed = threading.Condition()
        self._windows = int(always)
        self._samplers = 0
        self._timeout_s = timeout_s

    @property
    def over(self) -> bool:
        """Whether samplers must let go; they look between tokens."""
        return self._windows == 0

    @contextmanager
    def window(self) -> Iterator[None]:
        """Sampling is possible while open; afterwards the model is the caller's alone.

        Raises:
            EngineFault: a sampler did not let go in time; the model must not be trained.
        """
        with self._changed:
            self._windows += 1
        try:
            yield
        finally:
            with self._changed:
                self._windows -= 1
                if not self._windows and not self._changed.wait_for(
                    lambda: self._samplers == 0, self._timeout_s
                ):
                    raise EngineFault(
                        f"sampling did not end within {self._timeout_s:g} s after its episodes had; a model "
                        "that is still sampled cannot be trained"
                    )

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Hold the model, in the sampler's thread.

        Raises:
            EngineFault: no window is open: whoever asked for these tokens has gone.
        """
        with self._changed:
            if self.over:
                raise EngineFault("the model is being trained; its episode has ended")
            self._samplers += 1
        try:
            yield
        finally:
            with self._changed:
                self._samplers -= 1
                self._changed.notify_all()
