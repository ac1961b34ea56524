"""Trackers that transformers knows (wandb, tensorboard …): none of them may end a run that has begun."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback

__all__ = ["keep_going"]

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
