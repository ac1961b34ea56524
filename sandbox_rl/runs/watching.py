"""What both trainers are given beside their rollouts: adapters, audits, and what is logged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from peft import LoraConfig
from transformers.integrations import TensorBoardCallback

from sandbox_rl.audit.run import RunAudit
from sandbox_rl.runs.session import Session
from sandbox_rl.runs.step_lines import StepLines
from sandbox_rl.training.callbacks import LogMetrics
from sandbox_rl.training.config import LoraSettings
from sandbox_rl.training.probe import PublicationProbe

__all__ = ["adapters_of", "publication_probe", "purge_replayed", "start_audit", "watchers"]

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


def watchers(session: Session) -> list[Any]:
    """Callbacks that write metrics and tell a person of them."""
    own = [one for one in (session.status, session.endpoint) if one is not None]
    return [LogMetrics(session.records.run.metrics), StepLines(session.display), *own]


def purge_replayed(trainer: Any, step: int) -> None:
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
