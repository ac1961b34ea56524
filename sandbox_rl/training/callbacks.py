"""What happens between TRL's steps: metrics to disk, evaluation, an end on too many faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.audit.faults import FaultWatch
from sandbox_rl.display import Progress
from sandbox_rl.errors import SetupError
from sandbox_rl.training.agreement import together
from sandbox_rl.training.stopping import Asked, FinishOnSignal

__all__ = [
    "AfterSteps",
    "LogMetrics",
    "ShowSteps",
    "StopOnFaults",
    "for_trackers",
]


_TRACKED = {"eval/": "eval_", "suite/": "eval_suite/"}


def for_trackers(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Names of measurements as transformers' trackers know them.

    What begins with `eval_` they show in a group `eval/`; all else they put below `train/`.
    """
    return {_renamed(name, _TRACKED): value for name, value in logs.items()}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for before, after in table.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


class LogMetrics(TrainerCallback):  # type: ignore[misc]
    """Appends what TRL logs to `metrics.jsonl`, one line per logged step, with the time (Unix, seconds).

    Not `train_loss`, the mean of the updates since the last start: it would be another one after a resume.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: OSError | None = None

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs:
            ours = {"eval_suite/": "suite/", "eval_": "eval/"}
            named = {_renamed(name, ours): value for name, value in logs.items() if name != "train_loss"}
            line = {"step": state.global_step, "time": round(time.time(), 3), **named}
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, default=float) + "\n")
            except OSError as error:
                self._failed = error

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The first process writes, all of them stop if it cannot.

        Raises:
            SetupError: the metrics of the step before could not be written.
        """
        with together():
            if self._failed is not None:
                raise SetupError(f"{self._path} cannot be written ({self._failed}); free some space")


class AfterSteps(TrainerCallback):  # type: ignore[misc]
    """Calls `action(step)` after every `every` updates."""

    def __init__(self, every: int, action: Callable[[int], object]) -> None:
        self._every = every
        self._action = action

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Act when it is time; the last step is evaluated anyway."""
        if state.global_step % self._every == 0 and state.global_step < state.max_steps:
            logs = control.should_log
            self._action(state.global_step)
            # Whatever an action logs takes the step's own log as done (transformers' `on_log`).
            control.should_log = logs


class StopOnFaults(TrainerCallback):  # type: ignore[misc]
    """Ends the run as a signal does, with a checkpoint, once too many episodes could not be judged.

    Must come before `finish`, by which the processes agree.
    """

    def __init__(self, faults: FaultWatch, finish: FinishOnSignal) -> None:
        self._faults = faults
        self._finish = finish

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask to stop."""
        if self._faults.cause():
            self._finish.ask(Asked.UPDATE)


class ShowSteps(TrainerCallback):  # type: ignore[misc]
    """Moves a bar by one per update, with the mean reward that was logged."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One update more."""
        if logs and "loss" in logs:
            self._bar.advance(logs.get("reward"))
