"""What both trainers are given beside their rollouts: adapters, audits, and what is logged."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from peft import LoraConfig
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.display import Display
from sandbox_rl.metrics import Logs
from sandbox_rl.runs.session import Session
from sandbox_rl.training.base_trainer import SandboxTrainer
from sandbox_rl.training.callbacks import LogMetrics
from sandbox_rl.training.config import LoraSettings
from sandbox_rl.training.probe import PublicationProbe

PROBE_TOKENS = 96
"""Of the prompt that publications are probed with."""


def start_audit(session: Session, **about: Any) -> RunAudit:
    """The checks beside training, whose alarms go to `alarms.jsonl`; `about` as in `RunAudit.start`."""
    audit = RunAudit.start(
        session.records.run.path / "alarms.jsonl",
        total=lambda counts: _total(session.state, counts),
        mismatch_alarm=session.plan.recipe.policy.mismatch_alarm,
        **about,
    )
    if session.plan.checkpoint is not None:
        audit.restore(session.plan.checkpoint)
    return audit


def saved_parts(session: Session, audit: RunAudit) -> list[Callable[[Path], None]]:
    """What checkpoints of both modes hold beside TRL's files; each writes into a checkpoint's directory."""
    parts: list[Callable[[Path], None]] = [audit.save]
    if session.records.ledger is not None:
        parts.append(session.records.ledger.commit)
    return parts


def publication_probe(session: Session, audit: RunAudit) -> PublicationProbe | None:
    """Fixed tokens, the beginning of a prompt, that servers and trainer are asked about."""
    served = session.policy.served
    if served is None:
        return None
    ids = session.engine.prompt_ids(session.plan.train_tasks[0])[:PROBE_TOKENS]
    asks = session.state.is_main_process
    return PublicationProbe(
        audit.publications, ids, (lambda ids: session.loop.run(served.policy.score(ids))) if asks else None
    )


def watchers(session: Session) -> list[TrainerCallback]:
    """Callbacks that write metrics and tell a person of them."""
    own = [one for one in (session.status, session.endpoint) if one is not None]
    return [LogMetrics(session.records.run.metrics), StepLines(session.display), *own]


def purge_replayed(trainer: SandboxTrainer, step: int) -> None:
    """Have TensorBoard show no update twice: those after `step` are done again."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback._SummaryWriter = partial(callback._SummaryWriter, purge_step=step + 1)


def adapters_of(settings: LoraSettings | None) -> LoraConfig | None:
    """What peft is told; None where all weights are trained."""
    if settings is None:
        return None
    modules = settings.target_modules
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )


def _total(state: PartialState, counts: Sequence[float]) -> Sequence[float]:
    """Sums over all processes."""
    if state.num_processes == 1:
        return counts
    return [sum(column) for column in zip(*gather_object([list(counts)]), strict=True)]


SHOWN = 12
"""Updates whose rewards are drawn, and whose durations the estimate of the end goes by."""
_BARS = "▁▂▃▄▅▆▇█"
_ALARM = "alarms/"


class StepLines(TrainerCallback):  # type: ignore[misc]
    """Tells the display of each update that TRL logs."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._rewards: deque[float] = deque(maxlen=SHOWN)
        self._seconds: deque[float] = deque(maxlen=SHOWN)
        self._last: float | None = None

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
        """What comes before the first update is not its time."""
        self._last = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: object, logs: Logs, **kwargs: Any
    ) -> None:
        """Show one line."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        now = time.monotonic()
        if self._last is not None:
            self._seconds.append((now - self._last) / max(1, args.logging_steps))
        self._last = now
        if (reward := _number(logs, "reward")) is not None:
            self._rewards.append(reward)
        text = line_of(state.global_step, state.max_steps, logs, rewards=self._rewards, seconds=self._seconds)
        self._display.update(text, {"step": state.global_step, "steps": state.max_steps, **logs})


def line_of(
    step: int, steps: int, logs: Mapping[str, Any], *, rewards: deque[float], seconds: deque[float]
) -> str:
    """What a person wants to know of an update.

    Args:
        step, steps: its number, and how many there will be.
        logs: TRL's, by name; None and NaN say that there is no value.
        rewards: mean rewards of the last updates, this one's last.
        seconds: that the last updates took each, evaluations and checkpoints included.
    """
    words = [f"update {step:>{len(str(steps))}}/{steps}"]
    if rewards:
        words.append(f"reward {rewards[-1]:.3f} {_spark(rewards)}")
    for name, text in (
        ("solve_rate", "solved {:.0%}"),
        ("turns", "turns {:.1f}"),
        ("tokens/sampled", "tokens {:,.0f}"),
    ):
        if (value := _number(logs, name)) is not None:
            words.append(text.format(value))
    if faults := _number(logs, "infra_fault_rate"):
        words.append(f"faults {faults:.0%}")
    if seconds:
        words.append(_duration(seconds[-1]))
        if left := steps - step:
            words.append(f"about {_duration(left * statistics.median(seconds))} left")
    alarms = sorted(
        name.removeprefix(_ALARM) for name in logs if name.startswith(_ALARM) and _number(logs, name)
    )
    if alarms:
        words.append(f"ALARM {', '.join(alarms)}")
    return "  ".join(words)


def _number(logs: Mapping[str, Any], name: str) -> float | None:
    """A metric's value, None where it has none: an update of which nothing was judged has no mean reward."""
    value = logs.get(name)
    return float(value) if value is not None and math.isfinite(value) else None


def _spark(values: deque[float]) -> str:
    low, high = min(0.0, *values), max(1.0, *values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
