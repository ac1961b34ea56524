"""What happens between TRL's steps: metrics by all their names, evaluation, an end on too many faults.

Trackers that transformers knows (wandb, tensorboard …) are among them; none may end a run that has begun.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.audit.faults import FaultWatch
from sandbox_rl.display import Progress
from sandbox_rl.errors import SetupError
from sandbox_rl.field_metrics import Spent, of_update
from sandbox_rl.metrics import Logs
from sandbox_rl.outputs import append_line
from sandbox_rl.training.agreement import together
from sandbox_rl.training.stopping import Asked, FinishOnSignal
from sandbox_rl.training.trl_hooks import PolicyHooks

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

    def on_log(self, args: object, state: TrainerState, control: object, logs: Logs, **kwargs: Any) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs:
            ours = {"eval_suite/": "suite/", "eval_": "eval/"}
            named = {_renamed(name, ours): value for name, value in logs.items() if name != "train_loss"}
            line = {"step": state.global_step, "time": round(time.time(), 3), **named}
            try:
                append_line(self._path, json.dumps(line, default=float).encode())
            except OSError as error:
                self._failed = error

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: Any) -> None:
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

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
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

    def on_step_end(self, args: object, state: object, control: object, **kwargs: Any) -> None:
        """Ask to stop."""
        if self._faults.cause():
            self._finish.ask(Asked.UPDATE)


class ShowSteps(TrainerCallback):  # type: ignore[misc]
    """Moves a bar by one per update, with the mean reward that was logged."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def on_log(self, args: object, state: TrainerState, control: object, logs: Logs, **kwargs: Any) -> None:
        """One update more."""
        if logs and "loss" in logs:
            self._bar.advance(logs.get("reward"))


logger = logging.getLogger(__name__)

OTHERS = "transformers.integrations"
"""Where trackers come from; what of ours watches a run may end it."""
AT_THE_START = "on_train_begin"
"""What is wrong with a tracker when it starts is the person's to fix."""


def keep_going(callbacks: Iterable[TrainerCallback]) -> None:
    """Have each tracker among them fail without consequence: it is said once, and training goes on."""
    for callback in callbacks:
        if not type(callback).__module__.startswith(OTHERS):
            continue
        told: set[str] = set()
        for name in dir(TrainerCallback):
            if name.startswith("on_") and name != AT_THE_START:
                setattr(callback, name, _harmless(getattr(callback, name), type(callback).__name__, told))


def _harmless(act: Callable[..., Any], tracker: str, told: set[str]) -> Callable[..., Any]:
    @functools.wraps(act)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return act(*args, **kwargs)
        except Exception as error:
            if tracker not in told:
                told.add(tracker)
                logger.warning(
                    "%s failed (%s: %s); training goes on, and everything is in the run's own files",
                    tracker,
                    type(error).__name__,
                    " ".join(str(error).split())[:200],
                )
            return None

    return guarded


class FieldNames(TrainerCallback):  # type: ignore[misc]
    """Adds the names before any other callback sees what is logged; so it is to be the first of them.

    Args:
        named: metrics of an update, by TRL's names and ours → by those of the field.
    """

    def __init__(self, named: Callable[[Mapping[str, float]], Mapping[str, float]]) -> None:
        self._named = named

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        """Of an update; evaluations name their own."""
        if logs and "loss" in logs:
            known = (pair for pair in logs.items() if isinstance(pair[1], int | float))
            logs.update(self._named({name: value for name, value in known if math.isfinite(value)}))


class UpdateClock(TrainerCallback):  # type: ignore[misc]
    """Wall clock, tokens and age of synchronous updates, which begin with their rollouts."""

    def __init__(self, policy: PolicyHooks) -> None:
        self._policy = policy
        self._began: float | None = None
        self._step_s = 0.0
        self._ages: list[int] = []
        self._tokens = 0.0

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
        """A resumed run has seen tokens before."""
        self._tokens = float(state.num_input_tokens_seen)

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: Any) -> None:
        """Also of one that goes on after an update whose gradient was not finite."""
        self._began = time.monotonic()

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
        """Evaluations and checkpoints come afterwards."""
        if self._began is not None:
            self._step_s += time.monotonic() - self._began
            self._ages.append(int(state.global_step) - 1 - self._policy.sampled_at)
            self._began = None

    def take(self, found: Mapping[str, float]) -> dict[str, float]:
        """By the names of the field, of the updates since the last call."""
        updates, ages = max(1, len(self._ages)), self._ages
        rollout_s, publish_s = self._policy.take_seconds()
        seen = found.get("num_tokens", self._tokens)
        spent = Spent(
            self._step_s / updates, rollout_s / updates, publish_s / updates, (seen - self._tokens) / updates
        )
        self._step_s, self._ages, self._tokens = 0.0, [], seen
        named = of_update(found, spent)
        if ages:
            named |= {"off_policy/age_mean": sum(ages) / len(ages), "off_policy/age_max": float(max(ages))}
        return named


def of_async_update(found: Mapping[str, float]) -> dict[str, float]:
    """By the names of the field, of what TRL's asynchronous trainer has measured; ages have theirs."""
    waited, published = found.get("perf/rollout_wait_s", 0.0), found.get("perf/weight_sync_s", 0.0)
    computed = found.get("perf/fwd_bwd_s", 0.0) + found.get("perf/optimizer_s", 0.0)
    spent = Spent(
        found.get("perf/step_s", waited + published + computed),  # the first has none
        waited,
        published,
        found.get("sample/forwarded_tokens_mean", 0.0) * found.get("batch/samples_per_step", 0.0),
    )
    return of_update(found, spent)
