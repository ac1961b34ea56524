"""What is logged of an update by the names of `field_metrics` too, and what only a trainer can measure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.field_metrics import Spent, of_update
from sandbox_rl.training.trl_hooks import PolicyHooks

__all__ = ["FieldNames", "UpdateClock", "of_async_update"]


class FieldNames(TrainerCallback):  # type: ignore[misc]
    """Adds the names before any other callback sees what is logged; so it is to be the first of them.

    Args:
        named: metrics of an update, by TRL's names and ours → by those of the field.
    """

    def __init__(self, named: Callable[[Mapping[str, float]], Mapping[str, float]]) -> None:
        self._named = named

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
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

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A resumed run has seen tokens before."""
        self._tokens = float(state.num_input_tokens_seen)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Also of one that goes on after an update whose gradient was not finite."""
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
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
