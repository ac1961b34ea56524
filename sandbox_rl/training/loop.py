"""One asyncio loop in a thread of its own, for the whole life of a training run.

TRL calls us synchronously, sandboxes and engines live on between those calls: they need a loop that
does too. Everything that samples goes through `LoopThread.run`, so that is also where a model that is sampled
and trained by turns changes hands.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, TypeVar

from sandbox_rl.errors import StopAsked
from sandbox_rl.policies.lease import ModelLease

T = TypeVar("T")

STOP_TIMEOUT_S = 60.0


class LoopThread:
    """A context manager; `run` executes a coroutine there and waits for it.

    Args:
        lease: of a model of this process that is trained between the calls of `run`.
    """

    def __init__(self, lease: ModelLease | None = None) -> None:
        self._lease = lease if lease is not None else ModelLease()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._stopping = False
        self._finish_steps = False
        self._episodes: asyncio.Task[Any] | None = None
        self._of_step = False
        self._given_up = False

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def run_episodes(self, coroutine: Coroutine[Any, Any, T], *, of_step: bool = False) -> T:
        """As `run`, of what `give_up` ends.

        Args:
            of_step: of an update; `give_up(False)` lets them end.

        Raises:
            StopAsked: it did, before or while the coroutine ran; the sandboxes of that are free.
        """

        async def owned() -> T:
            if self._stopping and not (of_step and self._finish_steps):
                coroutine.close()
                raise StopAsked("the run was asked to stop")
            self._episodes, self._of_step = asyncio.current_task(), of_step
            try:
                return await coroutine
            except asyncio.CancelledError:
                if self._stopping:
                    raise StopAsked("the run was asked to stop") from None
                raise
            finally:
                self._episodes = None

        return self.run(owned())

    def give_up(self, steps: bool = True) -> None:
        """End the episodes that run, and let no others begin; from any thread, at any time.

        Args:
            steps: those of an update too; else they may begin and end.
        """
        with suppress(RuntimeError):  # the loop is closed: nothing runs any more
            self._loop.call_soon_threadsafe(self._give_up, steps)

    def _give_up(self, steps: bool) -> None:
        self._stopping, self._finish_steps = True, not steps
        if self._episodes is not None and not self._given_up and (steps or not self._of_step):
            self._given_up = True  # once: its clean-up is not to be cut
            self._episodes.cancel()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Result of `coroutine`; an interrupt of the caller cancels it and waits for its clean-up.

        However it ends, nothing samples the leased model afterwards.

        Raises:
            EngineFault: something still does; and what `coroutine` raises.
            RuntimeError: the thread does not run; it would be waited for without end.
        """
        if not self._thread.is_alive():
            coroutine.close()
            raise RuntimeError("the loop's thread does not run: enter the LoopThread first")
        with self._lease.window():
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            try:
                return future.result()
            except BaseException:
                if not future.done():
                    # Nobody waits for how that ends; asyncio would print it.
                    self._loop.call_soon_threadsafe(self._loop.set_exception_handler, lambda *_: None)
                    future.cancel()
                    self._drain()
                raise

    @contextmanager
    def entered(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """An async context manager, entered and left in the loop."""
        value = self.run(manager.__aenter__())
        try:
            yield value
        finally:
            self.run(manager.__aexit__(None, None, None))

    def __exit__(self, *exc: object) -> None:
        self._drain()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self._loop.close()

    def _drain(self) -> None:
        """Cancel what still runs and give it time to free its sandboxes."""

        async def cancel_all() -> None:
            others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=STOP_TIMEOUT_S / 2)

        with suppress(CancelledError, TimeoutError):
            asyncio.run_coroutine_threadsafe(cancel_all(), self._loop).result(STOP_TIMEOUT_S)
