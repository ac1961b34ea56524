"""Held-out results of a run: to the trackers, and to `results.json`, from which a resumed run reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from accelerate import PartialState

from sandbox_rl.evaluation import Evaluation
from sandbox_rl.runs.directory import RunDirectory
from sandbox_rl.training.agreement import together
from sandbox_rl.training.callbacks import for_trackers

__all__ = ["evaluation_of", "known_result", "log_evaluation", "write_results"]


def log_evaluation(trainer: Any, evaluation: Evaluation | None) -> None:
    """Send an evaluation to the trainer's trackers, names below `eval/` (`callbacks.for_trackers`)."""
    if evaluation is None:
        return
    logs: dict[str, float] = {
        "eval/tasks": evaluation.tasks,
        "eval/unjudged_tasks": evaluation.unjudged_tasks,
    }
    if not evaluation.tasks:  # a zero would look like a measurement
        trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, for_trackers(logs))
        return
    logs |= {"eval/accuracy": evaluation.accuracy, "eval/half_width": evaluation.half_width}
    logs |= {f"eval/accuracy/{domain}": value for domain, value in evaluation.domains.items()}
    logs |= {f"eval/pass_at_{k}": value for k, value in evaluation.pass_at.items()}
    logs |= {f"eval/{name}": value for name, value in evaluation.metrics.items()}
    # TRL's own log() would mix in what training has gathered since its last call.
    trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, for_trackers(logs))


def write_results(
    run: RunDirectory, state: PartialState, before: Evaluation | None, after: Evaluation | None
) -> None:
    """Write `results.json` anew, on the first process only."""
    with together():
        if state.is_main_process:
            run.write_json(
                "results.json",
                {name: asdict(e) for name, e in (("before", before), ("after", after)) if e is not None},
            )


def known_result(run: RunDirectory, name: str) -> Evaluation | None:
    """The evaluation `name` ("before" or "after") of an earlier start of this run, if it is there."""
    try:
        found = json.loads((run.path / "results.json").read_text()).get(name)
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    return evaluation_of(found)


def evaluation_of(found: Mapping[str, Any]) -> Evaluation:
    """An evaluation as `results.json` holds it."""
    pass_at = {int(k): value for k, value in found["pass_at"].items()}
    return Evaluation(**{**found, "pass_at": pass_at})
