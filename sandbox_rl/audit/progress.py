"""Does the policy have anything to learn from? Alarms on the metrics of the last steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerState

from sandbox_rl.audit.alarms import AlarmName, Alarms
from sandbox_rl.metrics import Logs

STEPS_EQUAL = 10
"""Steps in a row whose groups all had equal rewards until it is an alarm; fewer happen to healthy runs."""
STEPS_WITHOUT_CALLS = 3
STEPS_WITHOUT_CONTEXT = 2


def findings(steps: Sequence[Mapping[str, Any]]) -> dict[AlarmName, str]:
    """What is wrong with these steps, the newest last: name → what was seen and what to do.

    Args:
        steps: of each step `metrics.rollout_metrics` and `metrics.group_metrics`.
    """
    found: dict[AlarmName, str] = {}
    last = steps[-STEPS_EQUAL:]
    if len(last) == STEPS_EQUAL and all(step.get("zero_variance_groups") == 1.0 for step in last):
        mean = sum(step.get("reward/mean", 0.0) for step in last) / len(last)
        what = "easier tasks, a warm-up, or a look at the journal" if mean < 0.5 else "harder tasks"
        found[AlarmName.EQUAL_REWARDS] = (
            f"in {STEPS_EQUAL} steps the rewards of each group were all equal (mean {mean:.2f}), expected "
            f"groups that differ: nothing is learned; it needs {what}, or curriculum.refill_rounds"
        )
    last = steps[-STEPS_WITHOUT_CALLS:]
    if len(last) == STEPS_WITHOUT_CALLS and not any(_called(step) for step in last):
        turns = sum(step.get("turns", 0.0) for step in last) / len(last)
        found[AlarmName.NO_CALLS] = (
            f"in {STEPS_WITHOUT_CALLS} steps no tool call could be read ({turns:.1f} turns per episode), "
            "expected some: does the model know its tools (warmup), is chat.call_format what it writes?"
        )
    last = steps[-STEPS_WITHOUT_CONTEXT:]
    if len(last) == STEPS_WITHOUT_CONTEXT and all(_no_context_left(step) for step in last):
        prompt = last[-1].get("tokens/prompt", 0.0)
        found[AlarmName.NO_CONTEXT_LEFT] = (
            f"in {STEPS_WITHOUT_CONTEXT} steps every episode ran out of tokens in its first turn (prompts of "
            f"{prompt:.0f} tokens on average): they leave too little context to act in; raise "
            "episode.max_tokens, place the context in files, or use a model with a longer context"
        )
    return found


def _called(step: Mapping[str, Any]) -> bool:
    if "turns" not in step:
        return True  # nothing was judged: that is for other alarms to say
    return any(name.startswith("calls/") and value for name, value in step.items())


def _no_context_left(step: Mapping[str, Any]) -> bool:
    return bool(step.get("turns", 0.0) == 1.0 and step.get("stop/max_tokens", 0.0) >= 0.99)


class ProgressAudit(TrainerCallback):  # type: ignore[misc]
    """Sounds the alarms of `findings` on what is logged with each step."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._steps: deque[dict[str, Any]] = deque(maxlen=max(STEPS_EQUAL, STEPS_WITHOUT_CALLS))

    def on_log(self, args: object, state: TrainerState, control: object, logs: Logs, **kwargs: Any) -> None:
        """Look at one step."""
        if not logs or "loss" not in logs or "episodes" not in logs or not state.is_world_process_zero:
            return
        self._steps.append({name: value for name, value in logs.items() if value is not None})
        for name, detail in findings(tuple(self._steps)).items():
            self._alarms.sound(int(state.global_step), name, detail)
