"""What a command tells the person while it runs. The command line shows it; tests and scripts may not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol


class Progress(Protocol):
    """A bar over a known number of episodes or steps."""

    def advance(self, reward: float | None) -> None:
        """One more episode has ended, with this reward (None: our failure)."""
        ...

    def step(self) -> None:
        """One more of something that has no reward."""
        ...

    def note(self, text: str) -> None:
        """A few words beside the bar."""
        ...


class Display(Protocol):
    """Where a command's news go. Called from any thread."""

    def say(self, text: str) -> None:
        """One line of news."""
        ...

    def update(self, text: str, metrics: Mapping[str, Any]) -> None:
        """An update of training has finished: a line for a person, its metrics for a program."""
        ...

    def progress(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Progress]:
        """A progress bar over `total` episodes, `done` of them by an earlier start."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table."""
        ...


class _NoProgress:
    def advance(self, reward: float | None) -> None:
        return None

    def step(self) -> None:
        return None

    def note(self, text: str) -> None:
        return None


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def update(self, text: str, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def progress(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Progress]:
        """A bar that nobody sees."""
        return nullcontext(_NoProgress())

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Nothing."""


@contextmanager
def quieted(name: str, level: int) -> Iterator[None]:
    """While open, what a logger says below a level is not shown."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
