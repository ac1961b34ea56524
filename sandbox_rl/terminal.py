"""What a person sees in the terminal: news, progress bars with reward and episodes/s, tables."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from sandbox_rl.display import Progress, Silent

SMOOTHING = 0.98
"""Weight of the past in the running mean of the reward: about the last fifty episodes."""

LOG_EVERY = 30.0
"""Seconds between two lines of what goes on, where there is no terminal that shows a bar."""


class _Console(Console):
    """One whose reader may go away: what is said then is said to nobody, and a run goes on."""

    def on_broken_pipe(self) -> None:
        """Rich would end the process."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # else the interpreter fails once more when it ends
        os.close(nowhere)


class Terminal:
    """Fulfils `display.Display` with rich; plain lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console if console is not None else _Console()

    def say(self, text: str) -> None:
        """One line of news."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def update(self, text: str, metrics: Mapping[str, Any]) -> None:
        """A line for each update."""
        self.say(text)

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[EpisodeBar]:
        """A progress bar; where there is no terminal, a line now and then, and one at its end."""
        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(""),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=self._console) as bar:
            yield EpisodeBar(bar, title, total, done)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)


class JsonLines:
    """Fulfils `display.Display` for a program that reads: every piece of news is a line of JSON."""

    def say(self, text: str) -> None:
        """`{"say": text}`."""
        self._write({"say": text})

    def update(self, text: str, metrics: Mapping[str, Any]) -> None:
        """`{"update": {metric: value}}`, with `step` and `steps`."""
        self._write({"update": dict(metrics)})

    def progress(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Progress]:
        """Episodes are not told one by one."""
        return Silent().progress(title, total, done)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """`{"table": {"title": …, "columns": […], "rows": [[…]]}}`."""
        self._write({"table": {"title": title, "columns": columns, "rows": rows}})

    def _write(self, news: Mapping[str, Any]) -> None:
        print(json.dumps(news, default=float), flush=True)


class EpisodeBar:
    """Fulfils `display.Progress`."""

    def __init__(self, bar: Bar, title: str, total: int, done: int = 0) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=total or None, completed=done, note="", before=done)
        self._mean = 0.0
        self._weight = 0.0
        self._faults = 0
        self._logged = time.monotonic()

    def advance(self, reward: float | None) -> None:
        """One more episode; shows the running mean of the reward and the number of faults."""
        if reward is None:
            self._faults += 1
        else:
            # Bias-corrected exponential mean: right from the first episode on.
            self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * reward
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        note = f"reward {self._mean / self._weight:.2f}" if self._weight else ""
        if self._faults:
            note += f"  faults {self._faults}"
        self._bar.update(self._task, note=note)
        self.step()

    def step(self) -> None:
        """One more of something that has no reward."""
        self._bar.update(self._task, advance=1)
        now = time.monotonic()
        if self._bar.console.is_terminal or now - self._logged < LOG_EVERY:
            return
        self._logged = now
        task = self._bar.tasks[self._task]
        total = f"/{task.total:.0f}" if task.total else ""
        told = f"{task.description}: {task.completed:.0f}{total}  {task.fields['note']}".rstrip()
        self._bar.console.print(told, highlight=False, soft_wrap=True, markup=False)

    def note(self, text: str) -> None:
        """A few words beside the bar."""
        self._bar.update(self._task, note=text)


class _Rate(TextColumn):
    """Episodes per second over the bar's whole life, so that pauses count."""

    def render(self, task: Task) -> Text:
        fresh = task.completed - task.fields["before"]
        if not task.elapsed or not fresh:
            return Text("")
        return Text(f"{fresh / task.elapsed:6.1f}/s")
